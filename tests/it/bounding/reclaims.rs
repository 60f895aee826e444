//! Contract 6 as an operator sees it: what a reclaim says, refuses and does.

use super::*;

/// Has the census say how large each day of these is.
async fn claim(bench: &Bench, days: &[u64], bytes: u64) {
    for ago in days {
        bench
            .run(&format!(
                "UPDATE opsward.census c SET bytes = {bytes} /
                     (SELECT count(*) FROM opsward.census d WHERE d.day = c.day)
                 WHERE day = (now() AT TIME ZONE 'UTC')::date - {ago}"
            ))
            .await;
    }
}

fn codes(plan: &Value) -> Vec<&str> {
    plan["result"]["obstacles"].as_array().unwrap().iter().filter_map(|o| o["code"].as_str()).collect()
}

#[tokio::test]
async fn fit_takes_the_longest_window_there_is_room_for() {
    const OF: [u64; 6] = [100, 80, 60, 40, 20, 2];
    let mut bench = Bench::new().await.with(DAYS, "0");
    bench.on_days(&OF, 60).await;
    let fit = ["reclaim", "--plan", "--fit"];
    let (code, plan) = bench.json(&fit).await;
    assert_eq!((code, &plan["result"]["fit_days"]), (0, &Value::Null), "all of it fits: {plan}");
    assert_eq!(codes(&plan), ["nothing"]);

    // Three of the six days fit beside what a swap needs in any case.
    let space = |key: &str| plan["result"]["space"][key].as_u64().unwrap();
    let room = space("free").checked_sub(space("swap_needs")).expect("free disk for this test");
    claim(&bench, &OF, room / 10 * 3).await;
    for days in ["0", "90"] {
        bench = bench.with(DAYS, days);
        let (code, plan) = bench.json(&fit).await;
        let result = &plan["result"];
        assert_eq!((code, &result["mode"], &result["policy"]), (0, &"swap".into(), &"window".into()));
        assert_eq!((&result["fit_days"], codes(&plan)), (&40.into(), vec![]), "{plan}");
        let kept = |t: &Value| t["kept_rows"].as_u64().unwrap();
        assert_eq!(result["tables"].as_array().unwrap().iter().map(kept).sum::<u64>(), 180, "{plan}");
        let text = bench.start(&fit).output().await.stdout;
        let instead = if days == "0" { "all of the log" } else { "the 90 that are set" };
        let said = format!("40 days are the longest window that fits, instead of {instead}");
        assert!(text.contains(&said), "{text}");
    }
    // What is set fits, and so it is that.
    let (_, plan) = bench.start(&fit).env(DAYS, "30").json().await;
    assert_eq!((&plan["result"]["fit_days"], codes(&plan)), (&Value::Null, vec![]), "{plan}");
    assert_eq!(bench.start(&["reclaim", "--fit", "--mode", "in-place"]).output().await.code, Some(2));
    assert_eq!(bench.start(&["reclaim", "--fit", "--policy", "compact"]).output().await.code, Some(2));

    // The whole window by a swap: refused, with both ways out.
    let (code, refused) = bench.json(&["reclaim", "--policy=window", "--mode=swap", "--yes"]).await;
    let error = &refused["error"];
    assert_eq!((code, &error["code"]), (3, &"space".into()), "{refused}");
    assert!(
        ["in-place", "--fit"].iter().all(|way| error["fix"].as_str().unwrap().contains(way)),
        "{refused}"
    );
    // Not even seven days: refused, and never in place instead.
    claim(&bench, &[2], room * 2).await;
    let ran = bench.start(&["reclaim", "--fit", "--yes"]).output().await;
    assert_eq!((ran.code, bench.left().await), (Some(3), 360), "{ran:?}");
    for words in ["the shortest window that may be kept (7 days)", "--mode in-place"] {
        assert!(ran.stderr.contains(words), "{ran:?}");
    }

    claim(&bench, &[2], room / 10 * 3).await;
    let (_, plan) = bench.json(&fit).await;
    let hash = plan["result"]["hash"].as_str().unwrap();
    let (code, done) = bench.json(&["reclaim", "--fit", "--apply", hash, "--pace", "full"]).await;
    assert_eq!((code, bench.left().await), (0, 180), "{done}");
    assert_eq!(done["result"]["mode"], "swap");
}
