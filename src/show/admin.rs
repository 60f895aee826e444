//! The operator's port: metrics, health, status and the page. Reads only.

use super::gather::{DaemonView, gather};
use super::{Done, Frame, advice, database_state, json, page};
use crate::bound::plan::Plan;
use crate::clock::Clock;
use crate::db::{self, Db, census, history, stats};
use crate::http::{self, Body, Conn, Handler, error, respond};
use crate::metrics::Metrics;
use crate::settings::Settings;
use crate::values::signed;
use futures_util::FutureExt;
use hyper::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::timeout;

/// How long `/readyz` waits for the database.
const READY_WITHIN: Duration = Duration::from_secs(2);
/// Runs of the history that the page shows.
const HISTORY: i64 = 15;
/// The exposition format's own content type.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The limits of the operator's port: few connections, short answers.
pub const LIMITS: http::Limits = http::Limits {
    connections: 64,
    header_read: Duration::from_secs(10),
    response: Duration::from_secs(30),
    stop: Duration::from_secs(3),
};

/// The operator's port's handler.
pub struct Admin {
    /// What was set.
    pub settings: Arc<Settings>,
    /// The database.
    pub db: Db,
    /// What the daemon adds to the database's view.
    pub view: DaemonView,
    pub clock: Clock,
    pub metrics: Metrics,
    /// What was decided last, for the page.
    pub plan: Decided,
}

/// What the gate decided last; empty before its first look.
pub type Decided = Arc<Mutex<Option<Arc<Plan>>>>;

impl Admin {
    /// As a handler for `http::serve`.
    pub fn handler(self) -> Handler {
        let admin = Arc::new(self);
        Arc::new(move |request, _: Conn| {
            let admin = admin.clone();
            async move { admin.answer(&request).await }.boxed()
        })
    }

    async fn answer<B>(&self, request: &Request<B>) -> Response<Body> {
        let path = request.uri().path();
        if !["/", "/metrics", "/healthz", "/readyz", "/status"].contains(&path) {
            return error(StatusCode::NOT_FOUND, "there is / /metrics /healthz /readyz /status");
        }
        if ![Method::GET, Method::HEAD].contains(request.method()) {
            return http::read_only("this port is for reading: GET or HEAD");
        }
        let mut response = match path {
            "/metrics" => self.metrics(),
            "/healthz" => respond(StatusCode::OK, "application/json", "{\"alive\":true}\n"),
            "/readyz" => self.ready().await,
            "/status" => self.status().await,
            _ => self.page().await,
        };
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }

    fn metrics(&self) -> Response<Body> {
        let (in_use, most) = self.db.in_use();
        self.metrics.pool_in_use.set(signed(in_use));
        self.metrics.pool_size.set(signed(most));
        match self.metrics.encode() {
            Ok(text) => respond(StatusCode::OK, METRICS_TYPE, text),
            Err(e) => error(StatusCode::INTERNAL_SERVER_ERROR, &e.to_string()),
        }
    }

    async fn ready(&self) -> Response<Body> {
        let asked = timeout(READY_WITHIN, async { stats::ready(&mut self.db.client().await?).await });
        let answer = asked.await.unwrap_or_else(|_| {
            let words = format!("no answer within {} s", READY_WITHIN.as_secs());
            Err(db::Error::Away(words))
        });
        database_state::tell(&self.metrics, &answer);
        match answer {
            Ok(()) => respond(StatusCode::OK, "application/json", "{\"ready\":true}\n"),
            Err(e) => {
                let kind = e.kind();
                let why = serde_json::json!({ "ready": false, "code": kind.code(), "error": e.to_string(), "fix": kind.fix() });
                let text = why.to_string();
                let mut response = respond(StatusCode::SERVICE_UNAVAILABLE, "application/json", text + "\n");
                response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("5"));
                response
            }
        }
    }

    async fn status(&self) -> Response<Body> {
        let status = gather(&self.settings, Ok(&self.db), Some(&self.view), &self.clock).await;
        let result = match serde_json::to_value(&status) {
            Ok(value) => Done::new(value, "").warn(advice::warnings(&status)),
            Err(e) => return error(StatusCode::INTERNAL_SERVER_ERROR, &e.to_string()),
        };
        let frame = Frame {
            command: "status",
            at: status.at,
            own: self.settings.node_endpoint.as_ref(),
            warnings: &[],
        };
        respond(StatusCode::OK, "application/json", json(frame, &Ok(result)))
    }

    async fn page(&self) -> Response<Body> {
        let status = gather(&self.settings, Ok(&self.db), Some(&self.view), &self.clock).await;
        let (census, history) = self.days_and_history().await.unwrap_or_default();
        let plan = self.plan.lock().map_or(None, |decided| decided.clone());
        let warnings = advice::warnings(&status);
        let page = page::Page {
            status: &status,
            warnings: &warnings,
            plan: plan.as_deref(),
            census: &census,
            history: &history,
        };
        let html = page.html();
        let mut response = respond(StatusCode::OK, "text/html; charset=utf-8", html);
        let headers = response.headers_mut();
        headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(page::CONTENT_SECURITY_POLICY));
        headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
        headers.insert("referrer-policy", HeaderValue::from_static("no-referrer"));
        response
    }

    /// `None` when the database is away, or has no schema of opsward yet.
    async fn days_and_history(&self) -> Option<(Vec<census::Entry>, Vec<history::Entry>)> {
        let read = async {
            let client = self.db.client().await?;
            Ok::<_, db::Error>((census::load(&client).await?, history::latest(&client, HISTORY).await?))
        };
        timeout(READY_WITHIN, read).await.ok()?.ok()
    }
}
