//! Finds the active peers: a static list, or the node's own registry.

use super::client::{builder, cause};
use crate::settings::Settings;
use crate::tls::Verify;
use crate::values::{Host, Peer, PeerSet, PeerSource};
use reqwest::redirect::Policy;
use serde::Deserialize;
use std::time::Duration;
use url::Url;

/// The node's registry of endpoints.
const REGISTRY: &str = "eth.v1.EthService/GetRegisteredEndpoints";
/// How long it may take to answer.
const REGISTRY_TIME: Duration = Duration::from_secs(15);
/// What its answer may be at most; 1,000 endpoints are some 300 KiB.
const REGISTRY_BYTES: usize = 8 << 20;
/// The types of service that replicate the log, in any case.
const SERVICE_TYPES: [&str; 2] = ["content-node", "validator"];

/// A peer set and the way it was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FoundPeers {
    /// The peers.
    pub peers: PeerSet,
    /// The URL that answered; empty for a static list.
    pub via: String,
}

/// A set of static peers.
pub fn static_peers(hosts: &[Host], own: Option<&Host>) -> FoundPeers {
    let peers = hosts.iter().map(|h| Peer { host: h.clone(), wallet: String::new() }).collect();
    FoundPeers { peers: PeerSet::new(PeerSource::Static, peers, own), via: String::new() }
}

/// A client for the registry: follows no redirect, uses no proxy. A stock node
/// redirects port 80 to a certificate that localhost cannot check.
///
/// # Errors
/// TLS cannot be set up; says why.
pub fn registry_client() -> Result<reqwest::Client, String> {
    let client = builder(Verify::Full)?.redirect(Policy::none()).timeout(REGISTRY_TIME).build();
    client.map_err(|e| cause(&e))
}

/// The peers, as the settings say: the static list, or what the registry answers now.
///
/// # Errors
/// TLS cannot be set up, or no registry answered.
pub async fn look_up(settings: &Settings, own: Option<&Host>) -> Result<FoundPeers, String> {
    match &settings.peers {
        Some(hosts) => Ok(static_peers(hosts, own)),
        None => discover(&registry_client()?, &settings.node_url, own).await,
    }
}

/// Asks the node's registry at its own URL, failing that at self's public URL.
///
/// # Errors
/// Both ways failed: a sentence for each.
pub async fn discover(
    client: &reqwest::Client,
    node: &Url,
    own: Option<&Host>,
) -> Result<FoundPeers, String> {
    either_way(node, own, |base| async move {
        let peers = PeerSet::new(PeerSource::Discovered, ask(client, &base).await?, own);
        Ok(FoundPeers { peers, via: base.to_string() })
    })
    .await
}

/// Asks the node at its own URL, failing that at self's public URL.
///
/// # Errors
/// Both ways failed: a sentence for each.
pub(super) async fn either_way<T, Asked: Future<Output = Result<T, String>>>(
    node: &Url,
    own: Option<&Host>,
    ask: impl Fn(Url) -> Asked,
) -> Result<T, String> {
    let public = own.and_then(|host| Url::parse(host.as_str()).ok());
    let mut misses = Vec::new();
    for base in std::iter::once(node.clone()).chain(public) {
        match ask(base.clone()).await {
            Ok(told) => return Ok(told),
            Err(why) => misses.push(format!("{base}: {why}")),
        }
    }
    Err(misses.join("; "))
}

pub(super) async fn ask(client: &reqwest::Client, base: &Url) -> Result<Vec<Peer>, String> {
    let url = format!("{}/{REGISTRY}", base.as_str().trim_end_matches('/'));
    let request = client
        .post(url)
        .header("Content-Type", "application/json")
        .header("X-Forwarded-Proto", "https")
        .body("{}");
    let mut response = request.send().await.map_err(|e| cause(&e))?;
    if response.status() != reqwest::StatusCode::OK {
        return Err(format!("it answered {}", response.status()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| cause(&e))? {
        if body.len() + chunk.len() > REGISTRY_BYTES {
            return Err(format!("its answer is larger than {REGISTRY_BYTES} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    parse(&body)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    #[serde(default)]
    endpoints: Vec<Endpoint>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    #[serde(default)]
    endpoint: String,
    #[serde(default)]
    delegate_wallet: String,
    #[serde(default)]
    service_type: String,
}

/// Reads a registry's answer. Endpoints that are no URL are left out.
///
/// # Errors
/// The bytes are no such answer.
pub fn parse(body: &[u8]) -> Result<Vec<Peer>, String> {
    let answer: Answer =
        serde_json::from_slice(body).map_err(|e| format!("its answer is no registry: {e}"))?;
    // Self is always registered: an empty registry is one that is not ready.
    if answer.endpoints.is_empty() {
        return Err("its registry lists no endpoint at all".into());
    }
    Ok(answer
        .endpoints
        .into_iter()
        .filter(|e| SERVICE_TYPES.iter().any(|t| e.service_type.eq_ignore_ascii_case(t)))
        .filter_map(|e| Some(Peer { host: Host::parse(&e.endpoint)?, wallet: e.delegate_wallet }))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_replicating_services_count() {
        let body = br#"{"endpoints":[
            {"id":"1","endpoint":"https://A.example/","delegateWallet":"0x1","serviceType":"Validator"},
            {"endpoint":"https://b.example","serviceType":"content-node"},
            {"endpoint":"https://c.example","serviceType":"discovery-node"},
            {"endpoint":"no url","serviceType":"validator"}]}"#;
        let hosts: Vec<String> = parse(body).unwrap().into_iter().map(|p| p.host.to_string()).collect();
        assert_eq!(hosts, ["https://a.example", "https://b.example"]);
        let others = br#"{"endpoints":[{"endpoint":"https://c.example","serviceType":"discovery-node"}]}"#;
        assert_eq!(parse(others).unwrap(), []);
        assert!(parse(b"{}").is_err());
        assert!(parse(b"<html>").is_err());
    }
}
