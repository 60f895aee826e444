//! `opsward healthcheck`: for a container's HEALTHCHECK. Quick and quiet.

use super::Exit;
use crate::settings::Settings;
use crate::show::ask;

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Question {
    /// Whether the process lives.
    Alive,
    /// Whether its database answers too.
    Ready,
}

/// Asks the daemon; says nothing where all is well.
pub async fn run(settings: &Settings, question: Question) -> Exit {
    let path = match question {
        Question::Alive => "/healthz",
        Question::Ready => "/readyz",
    };
    let why = match ask::get(settings.admin_listen, path).await {
        Ok((200, _)) => return Exit::Done,
        Ok((code, body)) => format!("{code} {}", String::from_utf8_lossy(&body).trim_end()),
        Err(e) => e.to_string(),
    };
    eprintln!("http://{}{path}: {why}", settings.admin_listen);
    Exit::Failed
}
