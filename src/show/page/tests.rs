use super::*;

#[test]
fn what_peers_say_is_no_markup() {
    let grid = Grid {
        header: &["peer"],
        figures: &[],
        rows: vec![vec!["<script>alert('x')</script>".into()]],
        notes: vec!["a & \"b\"".into(), "run `opsward plan`, <b>".into(), "an odd ` one".into()],
    };
    let mut out = String::new();
    table(&mut out, &grid);
    assert!(!out.contains("<script>") && !out.contains("<b>"), "{out}");
    assert!(out.contains("a &amp; &quot;b&quot;"), "{out}");
    assert!(out.contains("<code>opsward plan</code>") && out.contains("an odd ` one"), "{out}");
}

#[test]
fn long_tables_are_cut() {
    let rows = (0..100).map(|n| vec![format!("https://node{n}.example")]).collect();
    let mut out = String::new();
    table(&mut out, &Grid { header: &["peer"], figures: &[], rows, notes: Vec::new() });
    assert!(out.contains("and 40 more") && !out.contains("node60."), "{out}");
}
