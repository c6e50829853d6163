-- The regions of the current images. Regions whose run has published no scores join with nothing.
-- Read duckdb.sql first. python -m jobs.query --regions true runs this file.
--
--   SET VARIABLE region_tables = 's3://bucket/out/regions/*/*/part-*.parquet';
--   .read deploy/sql/duckdb_regions.sql
--   FROM current_regions('4f2a...') ORDER BY p_value, largest DESC LIMIT 20;
CREATE OR REPLACE MACRO regions_of(model) AS TABLE
    SELECT * FROM read_parquet(getvariable('region_tables'), hive_partitioning = false)
    WHERE model_id = model;

CREATE OR REPLACE MACRO current_regions(model) AS TABLE
    SELECT scores.uri, scores.product, scores.part, scores.view, scores.width, scores.height,
           scores.is_anomalous, regions.*
    FROM regions_of(model) AS regions JOIN current_scores(model) AS scores
        ON regions.image_id = scores.image_id AND regions.run_id = scores.run_id;
