-- The vectors of two states and their difference, layer by layer: of neighbouring dimensions the value that is largest by size.
WITH sides AS (
  SELECT a.layer, a.vector AS a, b.vector AS b, len(a.vector) AS width, ceil(len(a.vector) / 288)::INTEGER AS step
  FROM states_by_ref($refs) AS a
  JOIN states_by_ref($refs) AS b ON b.layer = a.layer AND b.site = a.site AND len(b.vector) = len(a.vector)
  WHERE a.site = $site AND a.place = 0 AND b.place = 1
), dims AS (
  SELECT layer, step, unnest(a)::DOUBLE AS a, unnest(b)::DOUBLE AS b, unnest(range(width)) AS dim FROM sides
), sizes AS (
  SELECT layer, abs(a) AS size FROM dims UNION ALL SELECT layer, abs(b) FROM dims
), scales AS (
  SELECT layer, quantile_cont(size, 0.99) AS scale_row, (SELECT quantile_cont(size, 0.99) FROM sizes) AS scale_all
  FROM sizes GROUP BY layer
)
SELECT d.layer AS row, (d.dim // d.step) * d.step AS dim, d.step AS dims, 'layer ' || d.layer AS name,
       arg_max(d.a, abs(d.a)) AS a, arg_max(d.b, abs(d.b)) AS b, arg_max(d.a - d.b, abs(d.a - d.b)) AS difference,
       any_value(s.scale_row) AS scale_row, any_value(s.scale_all) AS scale_all
FROM dims AS d JOIN scales AS s ON s.layer = d.layer
GROUP BY d.layer, d.step, d.dim // d.step
ORDER BY d.layer, dim
