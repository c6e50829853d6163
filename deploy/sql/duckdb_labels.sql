-- What people decided: the last decision of each image and of each of its regions.
--
--   SET VARIABLE label_tables = 's3://bucket/out/labels/part-*.parquet';
--   .read deploy/sql/duckdb_labels.sql
--   FROM image_decisions() WHERE decision = 'defect';
--
-- A decision is of the bytes that were shown: it stays if an archive is rewritten with the same
-- bytes, and goes if they change. Of a file that was not read, it is of its version. Regions are
-- those of one model. Of two decisions of the same time, the one that sorts first wins.
-- python -m jobs.review runs this file.
CREATE OR REPLACE MACRO bytes_of(content_sha256, image_id) AS coalesce(content_sha256, image_id);

CREATE OR REPLACE MACRO all_decisions() AS TABLE
    SELECT * FROM read_parquet(getvariable('label_tables'), hive_partitioning = false);

CREATE OR REPLACE MACRO current_decisions() AS TABLE
    SELECT * FROM all_decisions()
    QUALIFY decision <> 'undecided' AND row_number() OVER (
        PARTITION BY uri, bytes_of(content_sha256, image_id), region,
                     CASE WHEN region IS NOT NULL THEN model_id END
        ORDER BY decided_at DESC, decision, who, image_id, model_id, run_id, source, comment
    ) = 1;

-- One decision for each image: the last of its own and of those of its regions that are defects.
CREATE OR REPLACE MACRO image_decisions() AS TABLE
    SELECT * FROM current_decisions() WHERE region IS NULL OR decision = 'defect'
    QUALIFY row_number() OVER (
        PARTITION BY uri, bytes_of(content_sha256, image_id)
        ORDER BY decided_at DESC, decision, region NULLS FIRST, model_id
    ) = 1;
