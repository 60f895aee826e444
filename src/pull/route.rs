//! Asks the node whether it still serves sweeps: newer ones answer 404.

use super::client::cause;
use super::discover::{ask, either_way};
use crate::values::{Host, SweepRoute, names};
use reqwest::StatusCode;
use std::time::Duration;
use url::Url;

/// Above every op: a node that serves sweeps answers an empty page.
const ROUTE: &str = "internal/crud/sweep?after=7ZZZZZZZZZZZZZZZZZZZZZZZZZ";
/// How long it may take to answer.
const WITHIN: Duration = Duration::from_secs(15);

/// Asks the node at its own URL, failing that at self's public URL. Whoever
/// answers 404 has to be a node: one that knows the registry.
///
/// # Errors
/// No way told: a sentence for each.
pub async fn sweep_route(
    client: &reqwest::Client,
    node: &Url,
    own: Option<&Host>,
) -> Result<SweepRoute, String> {
    either_way(node, own, |base| async move { at(client, &base).await }).await
}

async fn at(client: &reqwest::Client, base: &Url) -> Result<SweepRoute, String> {
    let url = format!("{}/{ROUTE}", base.as_str().trim_end_matches('/'));
    let request = client.get(url).header("X-Forwarded-Proto", "https").timeout(WITHIN);
    let response = request.send().await.map_err(|e| cause(&e))?;
    if response.headers().contains_key(names::VERSION) {
        return Err("an opsward answers there, not the node".into());
    }
    match response.status() {
        StatusCode::OK | StatusCode::BAD_REQUEST => Ok(SweepRoute::Served),
        StatusCode::NOT_FOUND => match ask(client, base).await {
            Ok(_) => Ok(SweepRoute::Gone),
            Err(why) => Err(format!("it answered 404, and is no node: {why}")),
        },
        status => Err(format!("it answered {status}")),
    }
}
