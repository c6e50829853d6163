-- The published tables and the current scores in Trino (Hive connector): one row per model and
-- image. Replace s3://bucket/out and run each statement once. After each night, run the second one
-- again: it adds the partition of the night.
--
--   SELECT * FROM current_scores WHERE model_id = '4f2a...' ORDER BY score DESC LIMIT 20;
--   -- Other verdicts without scoring again: by a false-alarm rate, or by a threshold.
--   SELECT uri, p_value <= 0.01 AS is_anomalous FROM current_scores WHERE model_id = '4f2a...';
--
-- Rows are ordered by run_number, not by scored_at, which is the time of some machine's clock.
-- Only the versions of a URI that its newest run scored are current: a replaced file is not, even
-- if the new file failed. For each version, the newest row is current; but a row with status ok
-- stays current if later reads failed for a reason that says nothing about the file.

CREATE TABLE IF NOT EXISTS scores (
    image_id varchar, uri varchar, product varchar, part varchar, view varchar,
    fields map(varchar, varchar), content_sha256 varchar,
    width integer, height integer, bit_depth tinyint,
    status varchar, reason varchar,
    score double, p_value double, is_anomalous boolean,
    peak_x integer, peak_y integer, map_uri varchar,
    model_id varchar, run_id varchar, run_number bigint, scored_at timestamp(3),
    night varchar, run varchar
)
WITH (
    external_location = 's3://bucket/out/scores/', format = 'PARQUET',
    partitioned_by = ARRAY['night', 'run']
);

CALL system.sync_partition_metadata('default', 'scores', 'ADD');

CREATE OR REPLACE VIEW current_scores AS
WITH images AS (
         SELECT model_id, image_id, product, part, view, fields, min(uri) AS uri,
                max(run_number) AS last_number,
                max_by(run_id, run_number) AS last_run,
                max_by(run_id, run_number) FILTER (WHERE was_read) AS read_run,
                max_by(status = 'ok', run_number) FILTER (WHERE was_read) AS is_ok
         FROM (SELECT *, status NOT IN ('missing', 'forbidden', 'unavailable', 'crashed_worker')
                      AS was_read FROM scores) AS judged
         GROUP BY model_id, image_id, product, part, view, fields
     ),
     newest AS (
         SELECT model_id, uri, max_by(last_run, last_number) AS last_run
         FROM images GROUP BY model_id, uri
     ),
     chosen AS (
         SELECT images.model_id, images.image_id,
                CASE WHEN is_ok THEN read_run ELSE images.last_run END AS run_id
         FROM images JOIN newest
             ON images.model_id = newest.model_id AND images.uri = newest.uri
             AND images.last_run = newest.last_run
     )
SELECT scores.image_id, scores.uri, product, part, view, fields, content_sha256, width, height,
       bit_depth, status, reason, score, p_value, is_anomalous, peak_x, peak_y, map_uri,
       scores.model_id, scores.run_id, run_number, scored_at, night
FROM scores JOIN chosen
    ON scores.run = chosen.run_id  -- the partition: others are not read
    AND scores.model_id = chosen.model_id AND scores.image_id = chosen.image_id
    AND scores.run_id = chosen.run_id;

-- The regions of the current images. Regions whose run has published no scores join with nothing.
CREATE TABLE IF NOT EXISTS regions (
    image_id varchar, number integer, box_x integer, box_y integer, box_width integer, box_height integer,
    area double, centroid_x double, centroid_y double, largest double, mean double, p_value double,
    touches_border boolean, model_id varchar, run_id varchar,
    night varchar, run varchar
)
WITH (
    external_location = 's3://bucket/out/regions/', format = 'PARQUET',
    partitioned_by = ARRAY['night', 'run']
);

CALL system.sync_partition_metadata('default', 'regions', 'ADD');

CREATE OR REPLACE VIEW current_regions AS
SELECT scores.uri, scores.product, scores.part, scores.view, scores.width, scores.height,
       scores.is_anomalous, regions.image_id, number, box_x, box_y, box_width, box_height, area,
       centroid_x, centroid_y, largest, mean, regions.p_value, touches_border, regions.model_id,
       regions.run_id
FROM regions JOIN current_scores AS scores
    ON regions.run = scores.run_id  -- the partition: others are not read
    AND regions.model_id = scores.model_id AND regions.image_id = scores.image_id;

-- The parts of several images, where paths name {part}: one row for each, with its worst image. A
-- view has failed if none of its images has a score, and is missing if the part has no image of a
-- view that other parts of its product have. python -m jobs.query --parts also has p-values of parts,
-- which follow from the held-out parts of the model.
CREATE OR REPLACE VIEW current_parts AS
WITH images AS (
         SELECT model_id, product, part, coalesce(view, '') AS view, uri, status, score, p_value,
                row_number() OVER (
                    PARTITION BY model_id, product, part
                    ORDER BY p_value NULLS LAST, score DESC NULLS LAST, image_id
                ) AS place
         FROM current_scores WHERE product IS NOT NULL AND part IS NOT NULL
     ),
     known AS (
         SELECT model_id, product, count(DISTINCT view) AS views FROM images GROUP BY model_id, product
     ),
     parts AS (
         SELECT model_id, product, part, count(*) AS images,
                max(CASE WHEN place = 1 AND status = 'ok' THEN view END) AS worst_view,
                max(CASE WHEN place = 1 AND status = 'ok' THEN uri END) AS uri,
                max(CASE WHEN place = 1 THEN score END) AS score,
                max(CASE WHEN place = 1 THEN p_value END) AS image_p_value,
                count(DISTINCT CASE WHEN status = 'ok' THEN view END) AS views_scored,
                count(DISTINCT view) AS views_seen
         FROM images GROUP BY model_id, product, part
     )
SELECT parts.model_id, parts.product, part, images, worst_view, uri, score, image_p_value, views_scored,
       views_seen - views_scored AS views_failed, views - views_seen AS views_missing
FROM parts JOIN known ON parts.model_id = known.model_id AND parts.product = known.product;

-- What people decided: the last decision of each image and of each of its regions. A decision is of
-- the bytes that were shown: it stays if an archive is rewritten with the same bytes, and goes if they
-- change. Regions are those of one model. The table has no partitions: new files count at once.
CREATE TABLE IF NOT EXISTS labels (
    image_id varchar, uri varchar, product varchar, content_sha256 varchar, region integer, decision varchar,
    who varchar, decided_at timestamp(3), source varchar, comment varchar, model_id varchar, run_id varchar
)
WITH (external_location = 's3://bucket/out/labels/', format = 'PARQUET');

CREATE OR REPLACE VIEW current_decisions AS
SELECT image_id, uri, product, content_sha256, region, decision, who, decided_at, source, comment,
       model_id, run_id
FROM (
    SELECT labels.*, row_number() OVER (
               PARTITION BY uri, coalesce(content_sha256, image_id), region,
                            CASE WHEN region IS NOT NULL THEN model_id END
               ORDER BY decided_at DESC, decision, who, image_id, model_id, run_id, source, comment
           ) AS place
    FROM labels
) AS ranked
WHERE place = 1 AND decision <> 'undecided';

-- One decision for each image: the last of its own and of those of its regions that are defects.
CREATE OR REPLACE VIEW image_decisions AS
SELECT image_id, uri, product, content_sha256, region, decision, who, decided_at, source, comment,
       model_id, run_id
FROM (
    SELECT current_decisions.*, row_number() OVER (
               PARTITION BY uri, coalesce(content_sha256, image_id)
               ORDER BY decided_at DESC, decision, region NULLS FIRST, model_id
           ) AS place
    FROM current_decisions WHERE region IS NULL OR decision = 'defect'
) AS ranked
WHERE place = 1;

-- The current scores with what people decided of the same bytes, whichever model they were shown under.
-- The list of a morning: alarms that nobody called false under the same model.
--
--   SELECT * FROM decided_scores WHERE model_id = '4f2a...' AND is_anomalous
--       AND NOT coalesce(decided = 'false_alarm' AND decided_model_id = model_id, false);
CREATE OR REPLACE VIEW decided_scores AS
SELECT scores.*, decisions.decision AS decided, decisions.who AS decided_by,
       decisions.decided_at AS decided_when, decisions.model_id AS decided_model_id
FROM current_scores AS scores LEFT JOIN image_decisions AS decisions
    ON scores.uri = decisions.uri
    AND coalesce(scores.content_sha256, scores.image_id)
        = coalesce(decisions.content_sha256, decisions.image_id);
