-- A number as text with four decimals, as the CSV files of the report have it.
-- @param x a number
-- @returns VARCHAR; NULL for NULL, NaN and infinities
-- @example select _decimals(2 / 3) = '0.6667' and _decimals('nan'::DOUBLE) is null
CREATE OR REPLACE MACRO _decimals(x) AS CASE WHEN isfinite(x) THEN printf('%.4f', x) END;
