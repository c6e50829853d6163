-- The current scores with what people decided of the same bytes, whichever model they were shown under.
-- Read duckdb.sql and duckdb_labels.sql first. python -m jobs.query runs this file.
--
--   .read deploy/sql/duckdb_decided.sql
--   -- The list of a morning: alarms that nobody called false under this model.
--   FROM decided_scores('4f2a...') WHERE is_anomalous
--       AND NOT coalesce(decided = 'false_alarm' AND decided_model_id = model_id, false);
CREATE OR REPLACE MACRO decided_scores(model) AS TABLE
    SELECT scores.*, decisions.decision AS decided, decisions.who AS decided_by,
           decisions.decided_at AS decided_when, decisions.model_id AS decided_model_id
    FROM current_scores(model) AS scores LEFT JOIN image_decisions() AS decisions
        ON scores.uri = decisions.uri
        AND coalesce(scores.content_sha256, scores.image_id)
            = coalesce(decisions.content_sha256, decisions.image_id);
