//! What is somebody else's: names, sequences, defaults, publications. A swap
//! carries it, leaves it alone, or says before it begins that it cannot.

use super::stands::in_time;
use super::*;
use crate::harness::wire::Matcher;
use opsward::db::{Db, uninstall};

impl Bed {
    /// The same work with sessions of its own: what was set for the database
    /// holds in them.
    async fn fresh(&self) -> Work {
        let db = Db::open(&self.database.target(), "opsward test", 8).await.unwrap();
        Work { db, ..self.work.clone() }
    }

    async fn uninstalled(&self) {
        let client = self.work.db.client().await.unwrap();
        let uninstall::Found::Ours(owned) = uninstall::find(&client).await.unwrap() else {
            panic!("nothing")
        };
        let mut lease = self.lease().await;
        assert_eq!(uninstall::remove(&mut lease, &owned).await.unwrap(), uninstall::Removal::Done);
    }
}

#[tokio::test]
async fn tables_and_indexes_of_the_same_names_are_left_alone() {
    let bed = Bed::new(400).await;
    let client = bed.database.client().await;
    client
        .batch_execute(
            "CREATE TABLE ops_old (a int); CREATE TABLE ops_next (b int);
             CREATE TABLE theirs (c int); CREATE INDEX ops_old_1_idx ON theirs (c);
             CREATE INDEX ops_next_1_idx ON theirs (c); CREATE INDEX by_host ON ops (host)",
        )
        .await
        .unwrap();
    let before = bed.schema();
    assert_eq!(bed.run(&bed.request(Policy::Window)).await.unwrap().outcome, Outcome::Done);
    assert_eq!(bed.schema(), before);
    bed.nothing_is_left().await;
}

#[tokio::test]
async fn defaults_of_the_database_change_nothing() {
    const SET: &str =
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET name = value', current_database()); END $$";
    let of_database = |name: &str, value: &str| SET.replace("name", name).replace("value", value);
    let (space, quotes) =
        (of_database("default_tablespace", "reclaim_space"), of_database("quote_all_identifiers", "on"));
    let no_space = of_database("default_tablespace", "DEFAULT");
    for (set, reset) in [
        (
            vec![
                "DROP ROLE IF EXISTS reclaim_default",
                "CREATE ROLE reclaim_default",
                "ALTER DEFAULT PRIVILEGES GRANT SELECT, TRUNCATE ON TABLES TO reclaim_default",
            ],
            vec!["DROP OWNED BY reclaim_default", "DROP ROLE reclaim_default"],
        ),
        (
            vec![
                "SET allow_in_place_tablespaces = on",
                "DROP TABLESPACE IF EXISTS reclaim_space",
                "CREATE TABLESPACE reclaim_space LOCATION ''",
                &space,
            ],
            vec![&no_space, "DROP TABLESPACE reclaim_space"],
        ),
        (vec![&quotes], vec![]),
    ] {
        for granted in ["SELECT 1", "GRANT SELECT ON ops TO PUBLIC"] {
            let bed = Bed::new(200).await;
            let client = bed.database.client().await;
            for sql in [granted].iter().chain(&set) {
                client.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
            }
            let (before, work) = (bed.schema(), bed.fresh().await);
            let report = in_time(bed.work_on(&work, &bed.request(Policy::Window))).await.unwrap();
            assert_eq!(report.outcome, Outcome::Done, "{set:?}");
            assert_eq!(bed.schema(), before, "{set:?}");
            bed.nothing_is_left().await;
            for sql in &reset {
                client.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
            }
        }
    }
}

/// A node upgrade in the middle of the copy may add a column with a sequence of
/// its own: whatever becomes of the reclaim, the sequence stays the node's.
#[tokio::test]
async fn a_sequence_of_the_log_stays_the_nodes() {
    for action in [Action::Resume, Action::Abort] {
        let bed = Bed::new(400).await;
        let client = bed.database.client().await;
        bed.run_until(&bed.request(Policy::Window), "verify").await;
        client.batch_execute("ALTER TABLE ops ADD COLUMN n bigserial").await.unwrap();
        let held = Request { hold: false, ..bed.again(action) };
        if action == Action::Abort {
            // Made anew with the column first.
            bed.run_until(&bed.again(Action::Resume), "swap").await;
        }
        in_time(bed.run(&held)).await.unwrap();
        bed.nothing_is_left().await;
        let of = "SELECT pg_get_serial_sequence('public.ops', 'n')";
        assert_eq!(client.query_one(of, &[]).await.unwrap().get::<_, String>(0), "public.ops_n_seq");
        bed.uninstalled().await;
        let row = client.query_one("INSERT INTO ops (ulid) VALUES ('new') RETURNING n", &[]).await.unwrap();
        assert!(row.get::<_, i64>(0) > 401);
    }
}

/// What an earlier version left: the node's sequence belongs to the old table.
#[tokio::test]
async fn uninstall_gives_back_a_sequence_that_is_not_ours() {
    let bed = Bed::new(10).await;
    let client = bed.database.client().await;
    client
        .batch_execute(
            "CREATE SEQUENCE opsward.ops_n_seq; ALTER TABLE ops ADD COLUMN n bigint DEFAULT nextval('opsward.ops_n_seq');
             CREATE TABLE opsward.ops_old (n bigint); ALTER SEQUENCE opsward.ops_n_seq OWNED BY opsward.ops_old.n",
        )
        .await
        .unwrap();
    bed.uninstalled().await;
    let row = client.query_one("INSERT INTO ops (ulid) VALUES ('new') RETURNING n", &[]).await.unwrap();
    assert_eq!(row.get::<_, Option<i64>>(0), Some(12));
}

/// The server refuses to delete from a published table that has none.
#[tokio::test]
async fn every_table_of_ours_has_a_replica_identity() {
    let bed = Bed::new(10).await;
    let without = "SELECT c.oid::regclass::text FROM pg_class c
         WHERE c.relnamespace = 'opsward'::regnamespace AND c.relkind = 'r' AND c.relreplident <> 'f'
           AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)";
    let rows = bed.database.client().await.query(without, &[]).await.unwrap();
    let without: Vec<String> = rows.iter().map(|r| r.get(0)).collect();
    assert!(without.is_empty(), "{without:?}");
}

#[tokio::test]
async fn what_comes_to_depend_on_the_log_meanwhile_undoes_the_swap() {
    for (phase, make, word, drop) in [
        ("copy", "CREATE PUBLICATION p FOR ALL TABLES", "publication p", "DROP PUBLICATION p"),
        ("swap", "CREATE PUBLICATION p FOR ALL TABLES", "publication p", "DROP PUBLICATION p"),
        ("copy", "CREATE VIEW v AS SELECT ulid FROM ops", "view v", "DROP VIEW v"),
    ] {
        let bed = Bed::new(400).await;
        let (all, client) = (bed.ulids().await, bed.database.client().await);
        bed.run_until(&bed.request(Policy::Window), phase).await;
        client.batch_execute(make).await.unwrap();
        client.batch_execute("UPDATE ops SET host = 'written'").await.unwrap();
        let report = in_time(bed.run(&bed.again(Action::Resume))).await.unwrap();
        assert!(matches!(&report.outcome, Outcome::Aborted(why) if why.contains(word)), "{make}: {report:?}");
        assert_eq!(bed.ulids().await, all);
        client.batch_execute(drop).await.unwrap();
        bed.nothing_is_left().await;
    }
}

/// The plan makes a copy and takes it back: what that cannot carry, it names.
#[tokio::test]
async fn the_plan_rehearses_the_copy() {
    let bed = Bed::new(200).await;
    let client = bed.database.client().await;
    for (make, undo, word) in [
        (
            "ALTER TABLE ops ADD COLUMN n int GENERATED ALWAYS AS IDENTITY",
            "ALTER TABLE ops DROP COLUMN n",
            "ops_n_seq",
        ),
        ("CREATE STATISTICS pair ON host, action FROM ops", "DROP STATISTICS pair", "pair"),
        (
            "CREATE FUNCTION no_drops() RETURNS event_trigger LANGUAGE plpgsql
             AS 'BEGIN IF tg_tag = ''DROP TABLE'' THEN RAISE EXCEPTION ''no drops here''; END IF; END';
             CREATE EVENT TRIGGER no_drops ON ddl_command_start EXECUTE FUNCTION no_drops()",
            "DROP EVENT TRIGGER no_drops; DROP FUNCTION no_drops",
            "no drops here",
        ),
        (
            "ALTER TABLE ops ENABLE ROW LEVEL SECURITY",
            "ALTER TABLE ops DISABLE ROW LEVEL SECURITY",
            "differs in table",
        ),
    ] {
        client.batch_execute(make).await.unwrap();
        let refused = bed.run(&bed.request(Policy::Window)).await.unwrap_err();
        assert!(matches!(&refused, Error::Refused { why, .. } if why.contains(word)), "{make}: {refused}");
        bed.nothing_is_left().await;
        client.batch_execute(undo).await.unwrap();
    }
    assert_eq!(bed.run(&bed.request(Policy::Window)).await.unwrap().outcome, Outcome::Done);
}

/// Five columns come between a look at the catalog and the next batch.
#[tokio::test]
async fn a_node_upgraded_in_the_middle_of_the_copy_begins_it_anew() {
    let bed = Bed::new(400).await;
    let upgrade =
        "ALTER TABLE ops ADD COLUMN a text, ADD COLUMN b text DEFAULT 'x', ADD COLUMN c timestamptz,
        ADD COLUMN d int, ADD COLUMN e jsonb";
    let at = Matcher::Text("SELECT array_agg(attname::text ORDER BY".into(), 1);
    let report = bed.meddled(&bed.request(Policy::Window), at, upgrade).await.unwrap();
    assert_eq!(report.outcome, Outcome::Done);
    assert!(bed.schema().contains("b text DEFAULT 'x'"));
    bed.nothing_is_left().await;
}

/// What a subscription writes fires no trigger of a statement: nobody would note it.
const SUBSCRIBED: &str = "
    CREATE SUBSCRIPTION s CONNECTION 'dbname=nowhere' PUBLICATION p WITH (connect = false);
    SET allow_system_table_mods = on;
    INSERT INTO pg_subscription_rel SELECT oid, 'ops'::regclass, 'r' FROM pg_subscription";
const UNSUBSCRIBED: &str = "
    ALTER SUBSCRIPTION s SET (slot_name = NONE);
    DROP SUBSCRIPTION s";

async fn each(client: &tokio_postgres::Client, statements: &str) {
    for statement in statements.split(';') {
        client.batch_execute(statement).await.unwrap();
    }
}

#[tokio::test]
async fn a_log_that_a_subscription_writes_to_is_not_swapped() {
    let bed = Bed::new(400).await;
    let (all, client) = (bed.ulids().await, bed.database.client().await);
    each(&client, SUBSCRIBED).await;
    let refused = bed.run(&bed.request(Policy::Window)).await.unwrap_err();
    assert!(matches!(&refused, Error::Refused { why, .. } if why.contains("subscription s")), "{refused}");
    each(&client, UNSUBSCRIBED).await;
    bed.run_until(&bed.request(Policy::Window), "swap").await;
    each(&client, SUBSCRIBED).await;
    let report = in_time(bed.run(&bed.again(Action::Resume))).await.unwrap();
    assert!(matches!(&report.outcome, Outcome::Aborted(why) if why.contains("subscription s")), "{report:?}");
    assert_eq!(bed.ulids().await, all);
    each(&client, UNSUBSCRIBED).await;
    bed.nothing_is_left().await;
}

/// A rewrite fires no trigger, and may leave the table as it was but for its rows.
#[tokio::test]
async fn a_log_that_was_rewritten_meanwhile_is_copied_anew() {
    let bed = Bed::new(400).await;
    let (all, client) = (bed.ulids().await, bed.database.client().await);
    bed.held().await;
    client.batch_execute("ALTER TABLE ops ALTER host TYPE text USING host || '/moved'").await.unwrap();
    let report = in_time(bed.run(&bed.again(Action::Swap))).await.unwrap();
    assert_eq!(report.outcome, Outcome::Done);
    assert!(bed.ulids().await.len() < all.len());
    assert_eq!(bed.number("SELECT count(*) FROM ops WHERE host NOT LIKE '%/moved'").await, 0);
    bed.nothing_is_left().await;
}
