use super::*;
use proptest::prelude::*;

fn target(text: &str) -> DbTarget {
    parse(text).unwrap()
}

fn error(text: &str) -> String {
    parse(text).unwrap_err()
}

#[test]
fn a_plain_url() {
    let t = target("postgres://me:p%40ss%2F@db.example:6000/the%20db?sslmode=require");
    assert_eq!(t.hosts, [("db.example".to_owned(), 6000)]);
    assert_eq!((t.user.as_str(), t.dbname.as_deref()), ("me", Some("the db")));
    assert_eq!(t.password.unwrap().reveal(), "p@ss/");
    assert_eq!(t.tls, TlsMode::Require);
    assert_eq!(t.connect_timeout, CONNECT_TIMEOUT);
}

#[test]
fn hosts_as_pgx_pairs_them() {
    let hosts = |text| -> Vec<String> {
        let hosts = target(text).hosts;
        hosts.iter().map(|(h, p)| format!("{h} {p}")).collect()
    };
    assert_eq!(hosts("postgres://a:1,b:2/d"), ["a 1", "b 2"]);
    assert_eq!(hosts("postgres://a,b:2/d"), ["a 2", "b 2"]);
    assert_eq!(hosts("postgres://a,b/d"), ["a 5432", "b 5432"]);
    assert_eq!(hosts("postgres://[::1]:7,[fe80::1]/d"), ["::1 7", "fe80::1 7"]);
    assert_eq!(hosts("postgres:///d"), ["localhost 5432"]);
    assert_eq!(hosts("postgres://u@:9/d"), ["localhost 9"]);
    assert_eq!(hosts("postgres://a:1/d?host=/run/pg&port=2"), ["/run/pg 2"]);
    assert_eq!(hosts("host=a,b port=1,2"), ["a 1", "b 2"]);
}

#[test]
fn a_socket_directory_takes_no_tls() {
    let t = target("postgres:///d?host=/var/run/postgresql&sslmode=verify-full");
    assert_eq!(t.tls, TlsMode::Disable);
    let t = target("postgres:///d?host=/run,h&sslmode=verify-full");
    assert_eq!(t.tls, TlsMode::VerifyFull);
}

#[test]
fn modes() {
    for (text, mode) in [
        ("disable", TlsMode::Disable),
        ("allow", TlsMode::Prefer),
        ("prefer", TlsMode::Prefer),
        ("verify-ca", TlsMode::VerifyCa),
        ("verify-full", TlsMode::VerifyFull),
    ] {
        assert_eq!(target(&format!("host=h sslmode={text}")).tls, mode);
    }
    assert_eq!(target("postgres://h/d").tls, TlsMode::Prefer);
}

#[test]
fn certificates() {
    let t = target("postgres://h/d?sslmode=verify-ca&sslrootcert=/r&sslcert=/c&sslkey=/k");
    assert_eq!(t.root_cert, Some("/r".into()));
    assert_eq!(t.client_cert, Some(("/c".into(), "/k".into())));
    let t = target("host=h sslmode=verify-full sslrootcert=system");
    assert_eq!(t.root_cert, None);
    assert!(error("host=h sslrootcert=system").contains("verify-full"));
    assert!(error("host=h sslkey=/k").contains("go together"));
}

#[test]
fn keywords_and_values() {
    let t = target(r" host = h  user=u password='a \' b\\' dbname=d\ e ");
    assert_eq!(t.password.unwrap().reveal(), r"a ' b\");
    assert_eq!(t.dbname.as_deref(), Some(r"d\ e"), "pgx keeps that backslash");
    let t = target("user=u");
    assert_eq!(t.dbname.as_deref(), Some("u"), "as the server does");
    let t = target("user=u password=http://x");
    assert_eq!(t.password.unwrap().reveal(), "http://x");
    assert!(target("user=u password=").password.is_none());
}

#[test]
fn query_keys_go_before_the_url() {
    let t = target("postgres://a:b@h/d?user=u&password=p+%2B&dbname=e&user=second");
    assert_eq!(t.user, "u");
    assert_eq!(t.password.unwrap().reveal(), "p +");
    assert_eq!(t.dbname.as_deref(), Some("e"));
}

#[test]
fn what_is_ignored_is_said_and_the_rest_is_a_parameter() {
    let parsed = parse(
        "postgres://h/d?pool_max_conns=4&pool_min_conns=1&application_name=x&work_mem=64MB\
         &options=-c%20geqo%3Doff%20--join-collapse-limit=3&connect_timeout=0",
    )
    .unwrap();
    let params: Vec<(&str, &str)> = parsed.params.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(params, [("geqo", "off"), ("join_collapse_limit", "3"), ("work_mem", "64MB")]);
    assert_eq!(
        parsed.notes,
        ["connect_timeout is cut to 60 s", "application_name, pool_* in it: of no use to opsward, ignored"]
    );
    assert_eq!(target("connect_timeout=7").connect_timeout.as_secs(), 7);
}

#[test]
fn every_mistake_has_its_sentence() {
    for (text, why) in [
        ("", "neither a URL"),
        ("localhost", "neither a URL"),
        ("mysql://h/d", "scheme"),
        ("POSTGRES://h/d", "scheme"),
        ("postgres://h:0/d", "port"),
        ("postgres://h:70000/d", "port"),
        ("postgres://h:1:2/d", "colons"),
        ("postgres://u:p/q@h/d", "%2F"),
        ("postgres://u:p%zz@h/d", "hexadecimal"),
        ("postgres://u:p%ff@h/d", "UTF-8"),
        ("postgres://u:p%00@h/d", "zero byte"),
        ("postgres://h/d?sslmode=maybe", "verify-full"),
        ("postgres://h/d?connect_timeout=-1", "connect_timeout"),
        ("postgres://h/d?a@b=c", "no name of a parameter"),
        ("postgres://h/d?work_mem=1%0A2", "control character"),
        ("postgres://h/d?options=-f", "options"),
        ("postgres://h/d?options=-c", "options"),
        ("=x", "no key"),
        ("password='abc", "does not end"),
        (r"password=abc\", "backslash"),
    ] {
        let error = error(text);
        assert!(error.contains(why), "{text}: {error}");
    }
}

fn encode(text: &str) -> String {
    text.bytes().map(|b| format!("%{b:02X}")).collect()
}

proptest! {
    #[test]
    fn never_panics(text in "\\PC*") {
        let _ = parse(&text);
    }

    #[test]
    fn never_panics_near_the_grammar(text in "(postgres://)?[a-z:@/?&=%,0-9\\[\\]'\\\\ ]{0,40}") {
        let _ = parse(&text);
    }

    #[test]
    fn plain_urls_come_back(
        user in "[^\0]{1,12}", password in "[^\0]{1,12}", db in "[^\0/]{1,12}",
        host in "[a-z][a-z0-9.]{0,20}", port in 1u16..,
    ) {
        let text = format!("postgresql://{}:{}@{host}:{port}/{}",
            encode(&user), encode(&password), encode(&db));
        let t = target(&text);
        prop_assert_eq!(t.hosts, vec![(host, port)]);
        prop_assert_eq!(t.user, user);
        let kept = t.password.unwrap();
        prop_assert_eq!(kept.reveal(), password);
        prop_assert_eq!(t.dbname.unwrap(), db);
    }

    #[test]
    fn no_error_holds_the_password(
        word in "[/?#@:%='\\\\ ]{0,2}", shape in 0usize..4,
    ) {
        let password = format!("{word}Zq7{word}Xw9{word}");
        let text = match shape {
            0 => format!("postgres://u:{password}@h:1/d?sslmode=x"),
            1 => format!("host=h password={password} sslmode=x"),
            2 => format!("postgres://h/d?password={password}&sslmode=x"),
            _ => format!("host=h password='{password}' port=x"),
        };
        if let Err(error) = parse(&text) {
            prop_assert!(!error.contains("Zq7") && !error.contains("Xw9"), "{}", error);
        }
    }

    #[test]
    fn what_is_shown_holds_no_password(password in "Zq7\\PC{0,8}") {
        let parsed = parse(&format!("postgres://u:{}@h/d", encode(&password))).unwrap();
        let shown = format!("{} {} {parsed:?}", parsed.masked(), parsed.shown());
        prop_assert!(!shown.contains("Zq7"), "{}", shown);
    }
}
