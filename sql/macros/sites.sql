-- The column of a site, chosen by its name; where the name is a constant, DuckDB reads no other column.
-- @param site name of a site
-- @param hidden_in the column of that name
-- @param hidden_out the column of that name
-- @param q the column of that name
-- @param k the column of that name
-- @param v the column of that name
-- @param attn_out the column of that name
-- @param mlp_gate the column of that name
-- @param mlp_up the column of that name
-- @param mlp_down_in the column of that name
-- @param mlp_down_out the column of that name
-- @returns FLOAT[]; an error that names the sites where there is no such site
-- @example select _site_column('q', 0, 0, 1, 0, 0, 0, 0, 0, 0, 0) = 1
CREATE OR REPLACE MACRO _site_column(
  site, hidden_in, hidden_out, q, k, v, attn_out, mlp_gate, mlp_up, mlp_down_in, mlp_down_out
) AS
  CASE site WHEN 'hidden_in' THEN hidden_in WHEN 'hidden_out' THEN hidden_out
            WHEN 'q' THEN q WHEN 'k' THEN k WHEN 'v' THEN v WHEN 'attn_out' THEN attn_out
            WHEN 'mlp_gate' THEN mlp_gate WHEN 'mlp_up' THEN mlp_up
            WHEN 'mlp_down_in' THEN mlp_down_in WHEN 'mlp_act' THEN mlp_down_in WHEN 'mlp_down_out' THEN mlp_down_out
            ELSE error('unknown site ''' || site || '''; the sites are hidden_in, hidden_out, q, k, v, attn_out, '
                       || 'mlp_gate, mlp_up, mlp_down_in, mlp_act, mlp_down_out') END;
