//! The harness holds what it says.

use crate::harness::cluster::{self, PASSWORD, PASSWORD_ROLE, TEMPLATE};
use crate::harness::{Cluster, Database, Stop, target};
use opsward::db::Db;

#[tokio::test]
async fn a_database_is_as_a_node_made_it() {
    let database = Database::new().await;
    let client = database.client().await;
    let row = client
        .query_one(
            "SELECT current_setting('server_version_num')::int / 10000,
                    pg_encoding_to_char(encoding), datcollate,
                    (SELECT count(*) FROM ops), pg_get_userbyid(datdba)::text
             FROM pg_database WHERE datname = current_database()",
            &[],
        )
        .await
        .unwrap();
    assert_eq!(row.get::<_, i32>(0), 15);
    assert_eq!(row.get::<_, &str>(1), "UTF8");
    assert_eq!(row.get::<_, &str>(2), "en_US.UTF-8");
    assert_eq!(row.get::<_, i64>(3), 0);
    assert_eq!(row.get::<_, &str>(4), "postgres");
    database.migrated().await;
}

#[tokio::test]
async fn databases_share_nothing() {
    let (a, b) = tokio::join!(Database::new(), Database::new());
    assert_ne!(a.name(), b.name());
    let sql = "INSERT INTO cursors VALUES ('http://a', '')";
    a.client().await.batch_execute(sql).await.unwrap();
    let row = b
        .client()
        .await
        .query_one("SELECT count(*) FROM cursors", &[])
        .await
        .unwrap();
    assert_eq!(row.get::<_, i64>(0), 0);
}

#[tokio::test]
async fn one_role_has_to_say_its_password() {
    let cluster = Cluster::shared();
    let mut config = cluster.config("postgres");
    config.user(PASSWORD_ROLE).password("wrong");
    let refused = config.connect(tokio_postgres::NoTls).await.map(|_| ());
    assert_eq!(refused.unwrap_err().code().unwrap().code(), "28P01");
    config.password(PASSWORD);
    cluster::connect(&config).await;
}

#[tokio::test]
async fn a_private_cluster_is_stopped_killed_and_comes_back() {
    let cluster = Cluster::private();
    cluster.create_database("openaudio", TEMPLATE).await;
    for how in [Stop::Immediate, Stop::Fast] {
        cluster.stop(how);
        let away = Db::open(&target(&cluster, "openaudio"), "test", 1).await;
        assert!(away.err().unwrap().is_away());
        cluster.start();
        Db::open(&target(&cluster, "openaudio"), "test", 1)
            .await
            .unwrap();
    }
    let root = cluster.socket_dir().to_owned();
    drop(cluster);
    assert!(!root.exists(), "{} is still there", root.display());
}
