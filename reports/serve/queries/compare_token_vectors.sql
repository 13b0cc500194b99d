-- The vectors of two states' aligned tokens and their difference at one layer: of neighbouring dimensions the value that is largest by size.
WITH sides AS (
  SELECT v.pair, v.position_a, v.position_b, v.token_a, v.token_b, v.vector_a AS a, v.vector_b AS b, len(v.vector_a) AS width,
         ceil(len(v.vector_a) / 288)::INTEGER AS step
  FROM _aligned_vectors($refs, $alignment, $site, 80) AS v
  WHERE v.layer = $layer AND len(v.vector_a) = len(v.vector_b)
), dims AS (
  SELECT pair, position_a, position_b, token_a, token_b, step, unnest(a)::DOUBLE AS a, unnest(b)::DOUBLE AS b, unnest(range(width)) AS dim
  FROM sides
), sizes AS (
  SELECT pair, abs(a) AS size FROM dims UNION ALL SELECT pair, abs(b) FROM dims
), scales AS (
  SELECT pair, quantile_cont(size, 0.99) AS scale_row, (SELECT quantile_cont(size, 0.99) FROM sizes) AS scale_all
  FROM sizes GROUP BY pair
)
SELECT d.pair AS row, (d.dim // d.step) * d.step AS dim, d.step AS dims,
       d.token_a || CASE WHEN d.token_b = d.token_a THEN '' ELSE ' / ' || d.token_b END
         || ' at ' || d.position_a || CASE WHEN d.position_b = d.position_a THEN '' ELSE ' / ' || d.position_b END AS name,
       arg_max(d.a, abs(d.a)) AS a, arg_max(d.b, abs(d.b)) AS b, arg_max(d.a - d.b, abs(d.a - d.b)) AS difference,
       any_value(s.scale_row) AS scale_row, any_value(s.scale_all) AS scale_all
FROM dims AS d JOIN scales AS s ON s.pair = d.pair
GROUP BY ALL
ORDER BY d.pair, dim
