-- One row about the catalog itself: which alab wrote it and where its lake is.
CREATE TABLE IF NOT EXISTS catalog_info (
  format INTEGER,           -- version of the catalog's layout; a newer one than alab knows is refused
  alab_version VARCHAR,     -- version of alab that last wrote the catalog
  sql_digest VARCHAR,       -- digest of the SQL library that is loaded
  lake VARCHAR,             -- absolute path of the lake that views and macros read
  objects VARCHAR           -- statements that drop what alab keeps in the file, as JSON; objects of yours stay
);
