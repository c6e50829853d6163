-- The current scores: the newest valid row of each image under a model, over all nights.
--
--   SET VARIABLE tables = 's3://bucket/out/scores/*/*/part-*.parquet';
--   .read deploy/sql/duckdb.sql
--   FROM current_scores('4f2a...') ORDER BY is_anomalous DESC, p_value LIMIT 20;
--   Scores of two products or models have no common unit: compare p-values.
--   -- Other verdicts without scoring again: by a false-alarm rate, or by a threshold.
--   SELECT * REPLACE (p_value <= 0.01 AS is_anomalous) FROM current_scores('4f2a...');
--
-- Rows are ordered by run_number, not by scored_at, which is the time of some machine's clock.
-- Only the versions of a URI that its newest run scored are current: a replaced file is not, even
-- if the new file failed. For each version, the newest row is current; but a row with status ok
-- stays current if later reads failed for a reason that says nothing about the file. python -m jobs.query runs this file.

CREATE OR REPLACE MACRO scores_of(model) AS TABLE
    SELECT * FROM read_parquet(getvariable('tables'), hive_partitioning = false)
    WHERE model_id = model;

-- The run that holds the current row of each image. Few columns, for ten million images.
CREATE OR REPLACE MACRO current_keys(model) AS TABLE
    WITH images AS (
             SELECT image_id, product, part, view, fields, min(uri) AS uri,
                    max(run_number) AS last_number,
                    max_by(run_id, run_number) AS last_run,
                    max_by(status, run_number) AS last_status,
                    max_by(run_id, run_number) FILTER (WHERE was_read) AS read_run,
                    max_by(status = 'ok', run_number) FILTER (WHERE was_read) AS is_ok
             FROM (SELECT *, status NOT IN ('missing', 'forbidden', 'unavailable', 'crashed_worker')
                          AS was_read FROM scores_of(model))
             GROUP BY image_id, product, part, view, fields
         ),
         newest AS (
             SELECT uri, max_by(last_run, last_number) AS last_run FROM images GROUP BY uri
         )
    SELECT images.image_id, images.product, images.part, images.view, images.fields, images.uri,
           CASE WHEN is_ok THEN read_run ELSE images.last_run END AS run_id, images.last_run,
           CASE WHEN is_ok THEN 'ok' ELSE last_status END AS status
    FROM images JOIN newest ON images.uri = newest.uri AND images.last_run = newest.last_run;

CREATE OR REPLACE MACRO current_scores(model) AS TABLE
    SELECT scores.* FROM scores_of(model) AS scores JOIN current_keys(model) AS keys
        ON scores.image_id = keys.image_id AND scores.run_id = keys.run_id;

-- The parts of several images, where paths name {part}: one row for each, with its worst image. A
-- view has failed if none of its images has a score, and is missing if the part has no image of a
-- view that other parts of its product have. python -m jobs.query --parts also has p-values of parts,
-- which follow from the held-out parts of the model.
CREATE OR REPLACE MACRO current_parts(model) AS TABLE
    WITH images AS (
             SELECT product, part, coalesce(view, '') AS view, uri, status, score, p_value,
                    row_number() OVER (
                        PARTITION BY product, part
                        ORDER BY p_value NULLS LAST, score DESC NULLS LAST, image_id
                    ) AS place
             FROM current_scores(model) WHERE product IS NOT NULL AND part IS NOT NULL
         ),
         known AS (
             SELECT product, count(DISTINCT view) AS views FROM images GROUP BY product
         ),
         parts AS (
             SELECT product, part, count(*) AS images,
                    max(CASE WHEN place = 1 AND status = 'ok' THEN view END) AS worst_view,
                    max(CASE WHEN place = 1 AND status = 'ok' THEN uri END) AS uri,
                    max(CASE WHEN place = 1 THEN score END) AS score,
                    max(CASE WHEN place = 1 THEN p_value END) AS image_p_value,
                    count(DISTINCT CASE WHEN status = 'ok' THEN view END) AS views_scored,
                    count(DISTINCT view) AS views_seen
             FROM images GROUP BY product, part
         )
    SELECT parts.product, part, images, worst_view, uri, score, image_p_value, views_scored,
           views_seen - views_scored AS views_failed, views - views_seen AS views_missing
    FROM parts JOIN known ON parts.product = known.product;
