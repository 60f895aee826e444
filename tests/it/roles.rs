//! `docs/roles.sql`: with the rights of its level, and none of the others,
//! `doctor` is content; without any one of them it is not, or opsward does not
//! start.

use crate::harness::cluster;
use crate::harness::{Database, Start};
use serde_json::Value;

const ROLES: &str = include_str!("../../docs/roles.sql");
const LEVELS: [&str; 4] = ["week", "pull", "bound", "reclaim"];

/// A database, and a role of each of the file's two, under names of their own.
struct Bench {
    database: Database,
    client: tokio_postgres::Client,
    role: String,
}

impl Bench {
    async fn new() -> Self {
        let database = Database::new().await;
        let client = database.client().await;
        Self { database, client, role: cluster::unique("roles") }
    }

    /// A level's statements.
    fn of(&self, level: &str) -> Vec<String> {
        let part = ROLES.split("-- level: ").find(|part| part.starts_with(level)).unwrap();
        let lines = part.lines().skip(1).filter(|line| !line.starts_with("--"));
        let text = lines.collect::<Vec<_>>().join("\n");
        let text = text
            .replace("DATABASE openaudio", &format!("DATABASE {}", self.database.name()))
            .replace("opsward_sidecar", &self.role)
            .replace("opsward_log", &format!("{}_log", self.role));
        text.split(';').map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect()
    }

    async fn run(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    fn start(&self, args: &[&str], level: &str) -> Start {
        let url = self.database.url().replace("postgres:postgres@", &format!("{}:choose%20one@", self.role));
        let bounds = ["bound", "reclaim"].contains(&level);
        let mut start = Start::new(args)
            .env("OPENAUDIO_DB_URL", url)
            .env("OPENAUDIO_NODE_ENDPOINT", "https://me.example")
            .env("OPENAUDIO_MEDIORUM_PEERS", "none")
            .env("OPENAUDIO_MEDIORUM_PGDATA_PATH", "/tmp")
            .env("OPENAUDIO_MEDIORUM_READ_ONLY", if level == "week" { "true" } else { "false" });
        if bounds {
            start = start
                .env("OPENAUDIO_MEDIORUM_OPS_RETENTION_DAYS", "29")
                .env("OPENAUDIO_MEDIORUM_OPS_REPLAY_GUARD", "true")
                .env("OPENAUDIO_MEDIORUM_ENSURE_OPS_TABLE_INDEX", "true");
        }
        start
    }

    /// What `doctor` says of privileges: nothing where it is content.
    async fn lacks(&self, level: &str) -> String {
        let ran = self.start(&["doctor", "--output", "json"], level).output().await;
        let json: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {ran:?}"));
        let checks = json["result"]["checks"].as_array().cloned().unwrap_or_default();
        let about = |c: &&Value| {
            c["verdict"] != "ok"
                && ["privileges", "database", "schema_privilege"].iter().any(|n| c["name"] == *n)
        };
        checks.iter().filter(about).map(|c| format!("{} {}\n", c["found"], c["fix"])).collect()
    }

    async fn drop_roles(self) {
        let role = &self.role;
        let gone = format!("SELECT count(*) = 0 FROM pg_stat_activity WHERE usename = '{role}'");
        while !self.client.query_one(&gone, &[]).await.unwrap().get::<_, bool>(0) {
            tokio::task::yield_now().await;
        }
        let others = format!(
            "DO $$ BEGIN IF to_regrole('{role}_log') IS NOT NULL THEN
                 EXECUTE 'REVOKE SET ON PARAMETER deadlock_timeout FROM {role}';
                 ALTER TABLE public.ops OWNER TO postgres; DROP OWNED BY {role}_log CASCADE; DROP ROLE {role}_log;
             END IF; END $$; DROP OWNED BY {role} CASCADE; DROP ROLE {role}"
        );
        self.run(&others).await;
    }
}

#[tokio::test]
async fn each_level_is_enough_and_nothing_in_it_is_too_much() {
    let bench = Bench::new().await;
    for level in LEVELS {
        let statements = bench.of(level);
        assert!(!statements.is_empty(), "{level}");
        for sql in &statements {
            assert!(!sql.to_uppercase().contains("SUPERUSER") && !sql.contains("GRANT postgres"), "{sql}");
            bench.run(sql).await;
        }
        assert_eq!(bench.lacks(level).await, "", "{level}");
        // Each of what doctor can see the lack of; taken away, and given back.
        for sql in
            statements.iter().filter(|sql| sql.starts_with("GRANT") && !sql.contains("pg_read_all_stats"))
        {
            let seen = level != "reclaim" && !(sql.contains("ON DATABASE") && level != "week");
            if !seen {
                continue;
            }
            let taken = sql.replacen("GRANT", "REVOKE", 1).replace(" TO ", " FROM ");
            bench.run(&taken).await;
            assert_ne!(bench.lacks(level).await, "", "{level}: nobody misses: {sql}");
            bench.run(sql).await;
        }
        assert_eq!(bench.lacks(level).await, "", "{level}: given back");
        if level == "week" {
            // It makes its own schema.
            let daemon = bench.start(&["run"], level).spawn();
            daemon.ready().await;
        }
    }
    // With the last level the log can be given back, by a swap too.
    let ran =
        bench.start(&["reclaim", "--plan", "--policy", "window", "--mode", "swap"], "reclaim").output().await;
    assert!(!ran.stdout.contains("the role"), "{ran:?}");
    bench.drop_roles().await;
}
