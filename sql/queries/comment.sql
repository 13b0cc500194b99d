-- COMMENT ON takes no parameters: kind and name are those of an object of the library, the text is written in.
COMMENT ON $kind $name IS $text;
