//! `opsward pause`, `resume` and `pace`: bulk work obeys them at its next batch, whichever
//! process runs it.

use super::Context;
use crate::db::{Client, migrate, pace};
use crate::show::{Done, Outcome};
use serde_json::json;

/// Show or set how much of the time bulk work is at work
#[derive(clap::Args)]
pub(super) struct Args {
    /// gentle is 25%, full is 100%; without it the pace is shown
    #[arg(value_name = "gentle|full|N%", value_parser = super::lease::percent)]
    pace: Option<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pause {
    Yes,
    No,
}

async fn client(context: &Context, command: &str) -> Result<Client, crate::show::Failure> {
    let mut client = context.open_db(command, 1).await?.client().await?;
    migrate::migrate(&mut client).await?;
    Ok(client)
}

pub(super) async fn pause(context: &Context, pause: Pause) -> Outcome {
    let client = client(context, "pause").await?;
    let was = pace::signs(&client).await?.paused_at;
    if was.is_some() != (pause == Pause::Yes) {
        let now = context.clock.now();
        pace::pause(&client, (pause == Pause::Yes).then_some(now), now).await?;
        return Ok(pace_now(&client).await?.changed(true));
    }
    pace_now(&client).await
}

pub(super) async fn set(context: &Context, args: Args) -> Outcome {
    let client = client(context, "pace").await?;
    match args.pace {
        None => pace_now(&client).await,
        Some(percent) => {
            let was = pace::signs(&client).await?.percent;
            pace::set(&client, percent, context.clock.now()).await?;
            Ok(pace_now(&client).await?.changed(was != percent))
        }
    }
}

async fn pace_now(client: &Client) -> Outcome {
    let signs = pace::signs(client).await?;
    let word = match signs.percent {
        pace::GENTLE => " (gentle)",
        100 => " (full)",
        _ => "",
    };
    let text = match signs.paused_at {
        Some(at) => format!("bulk work is paused since {at:.0}; `opsward resume` lets it go on"),
        None => format!("bulk work is at work {}% of the time{word}", signs.percent),
    };
    Ok(Done::new(json!({ "percent": signs.percent, "paused_at": signs.paused_at }), text))
}
