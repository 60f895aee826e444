-- The guard runs as its owner, with the search_path of whoever writes. What it inlines
-- compared by an operator without its schema: the writer's own one ran with the owner's rights.
--
-- A batch that raises a floor up to what is announced of its table changes nothing that the
-- guard knows. Only the rows that were written are looked at for that: an old snapshot keeps
-- all versions of the others. Whoever writes no row, or one without a name, has it announced
-- anew in any case.
CREATE OR REPLACE FUNCTION opsward.announce() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    cases CONSTANT text := $text$
        SELECT 'SELECT CASE ' || string_agg(format('WHEN table_name OPERATOR(pg_catalog.=) %L THEN %L ', t.name,
               coalesce(greatest(f.floor, f.horizon, f.foreign_floor, f.announced), '')), '' ORDER BY t.name)
               || 'ELSE '''' END'
        FROM unnest('{audio_previews,qm_audio_analyses,storage_and_db_sizes,uploads}'::text[]) AS t(name)
        LEFT JOIN opsward.floors f ON f.table_name = t.name $text$;
    body text;
BEGIN
    IF to_regprocedure('public.opsward_replay_guard()') IS NULL THEN
        RETURN NULL;
    END IF;
    IF EXISTS (SELECT FROM written) AND NOT EXISTS (
        SELECT FROM written w
        WHERE w.table_name = '' OR w.table_name <> 'blobs'
          AND coalesce(greatest(w.floor, w.horizon, w.foreign_floor, w.announced), '')
              <> opsward.announced(w.table_name)) THEN
        RETURN NULL;
    END IF;
    EXECUTE cases INTO body;
    IF body = (SELECT prosrc FROM pg_proc WHERE oid = 'opsward.announced(text)'::regprocedure) THEN
        RETURN NULL;
    END IF;
    -- Two at once would fail; the second makes it of what both know.
    PERFORM pg_advisory_xact_lock(hashtext('opsward.announced'));
    EXECUTE cases INTO body;
    EXECUTE format('CREATE OR REPLACE FUNCTION opsward.announced(table_name text) RETURNS text
                    LANGUAGE sql IMMUTABLE AS %L', body);
    RETURN NULL;
END
$$;
DROP TRIGGER announce ON opsward.floors;
CREATE TRIGGER announce AFTER INSERT ON opsward.floors REFERENCING NEW TABLE AS written
    FOR EACH STATEMENT EXECUTE FUNCTION opsward.announce();
CREATE TRIGGER announce_update AFTER UPDATE ON opsward.floors REFERENCING NEW TABLE AS written
    FOR EACH STATEMENT EXECUTE FUNCTION opsward.announce();
-- Made anew where there is a guard.
UPDATE opsward.floors SET announced = announced WHERE false;
