//! `opsward pause`, `resume` and `pace`: bulk work obeys them at its next batch, whichever
//! process runs it.

use super::{Command, Context, Output, Run};
use crate::db::{Client, migrate, pace};
use crate::show::{Changed, Done, Outcome};
use clap::{Arg, ArgMatches};
use serde_json::json;

/// Stops bulk work.
pub(super) const PAUSE: Command = Command {
    name: "pause",
    args: |command| command.about("Stop bulk work at its next batch, until `resume`"),
    output: Output::Envelope,
    run: Run::Settled(|context, _| Box::pin(pause(context, Pause::Yes))),
};

/// Lets bulk work go on.
pub(super) const RESUME: Command = Command {
    name: "resume",
    args: |command| command.about("Let bulk work go on"),
    output: Output::Envelope,
    run: Run::Settled(|context, _| Box::pin(pause(context, Pause::No))),
};

/// Shows or sets the pace.
pub(super) const PACE: Command = Command {
    name: "pace",
    args: |command| {
        command.about("Show or set how much of the time bulk work is at work").arg(
            Arg::new("pace")
                .value_name("gentle|full|N%")
                .value_parser(super::lease::percent)
                .help("gentle is 25%, full is 100%; without it the pace is shown"),
        )
    },
    output: Output::Envelope,
    run: Run::Settled(|context, args| Box::pin(set(context, args))),
};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pause {
    Yes,
    No,
}

async fn client(context: &Context, command: &str) -> Result<Client, crate::show::Failure> {
    let mut client = context.open_db(command, 1).await?.client().await?;
    migrate::migrate(&mut client).await?;
    Ok(client)
}

async fn pause(context: &Context, pause: Pause) -> Outcome {
    let client = client(context, "pause").await?;
    let was = pace::signs(&client).await?.paused_at;
    if was.is_some() != (pause == Pause::Yes) {
        let now = context.clock.now();
        pace::pause(&client, (pause == Pause::Yes).then_some(now), now).await?;
        return Ok(shown(&client).await?.changed(Changed::Yes));
    }
    shown(&client).await
}

async fn set(context: &Context, args: &ArgMatches) -> Outcome {
    let client = client(context, "pace").await?;
    match args.get_one::<u8>("pace") {
        None => shown(&client).await,
        Some(percent) => {
            let was = pace::signs(&client).await?.percent;
            pace::set(&client, *percent, context.clock.now()).await?;
            Ok(shown(&client).await?.changed(was != *percent))
        }
    }
}

async fn shown(client: &Client) -> Outcome {
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
