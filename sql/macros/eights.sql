-- Sum of the absolute differences of two rows of `_eights`.
-- @param x eight dimensions of a vector
-- @param y the same of another
-- @returns a number of the vectors' type
-- @example select _distance_of_eights(_eights(range(8))[1], _eights(range(1, 9))[1]) = 8
CREATE OR REPLACE MACRO _distance_of_eights(x, y) AS
  abs(x[1] - y[1]) + abs(x[2] - y[2]) + abs(x[3] - y[3]) + abs(x[4] - y[4])
  + abs(x[5] - y[5]) + abs(x[6] - y[6]) + abs(x[7] - y[7]) + abs(x[8] - y[8]);

-- Inner product of two rows of `_eights`.
-- @param x eight dimensions of a vector
-- @param y the same of another
-- @returns DOUBLE
-- @example select _dot_of_eights(_eights(range(8))[1], _eights(range(8))[1]) = 140
CREATE OR REPLACE MACRO _dot_of_eights(x, y) AS
  x[1]::DOUBLE * y[1] + x[2]::DOUBLE * y[2] + x[3]::DOUBLE * y[3] + x[4]::DOUBLE * y[4]
  + x[5]::DOUBLE * y[5] + x[6]::DOUBLE * y[6] + x[7]::DOUBLE * y[7] + x[8]::DOUBLE * y[8];

-- Sum of the differences of two rows of `_eights`.
-- @param x eight dimensions of a vector
-- @param y the same of another
-- @returns DOUBLE
-- @example select _difference_of_eights(_eights(range(1, 9))[1], _eights(range(8))[1]) = 8
CREATE OR REPLACE MACRO _difference_of_eights(x, y) AS
  (x[1]::DOUBLE - y[1]) + (x[2]::DOUBLE - y[2]) + (x[3]::DOUBLE - y[3]) + (x[4]::DOUBLE - y[4])
  + (x[5]::DOUBLE - y[5]) + (x[6]::DOUBLE - y[6]) + (x[7]::DOUBLE - y[7]) + (x[8]::DOUBLE - y[8]);

-- Sum of the squared differences of two rows of `_eights`.
-- @param x eight dimensions of a vector
-- @param y the same of another
-- @returns DOUBLE
-- @example select _square_of_eights(_eights(range(2, 10))[1], _eights(range(8))[1]) = 32
CREATE OR REPLACE MACRO _square_of_eights(x, y) AS
  (x[1]::DOUBLE - y[1]) ** 2 + (x[2]::DOUBLE - y[2]) ** 2 + (x[3]::DOUBLE - y[3]) ** 2
  + (x[4]::DOUBLE - y[4]) ** 2 + (x[5]::DOUBLE - y[5]) ** 2 + (x[6]::DOUBLE - y[6]) ** 2
  + (x[7]::DOUBLE - y[7]) ** 2 + (x[8]::DOUBLE - y[8]) ** 2;
