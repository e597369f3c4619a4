//! The terminal of the kv store: one command language for scripts and people, and the local cluster.

mod cli;
pub mod command;
pub mod dashboard;
pub mod error;
pub mod exec;
mod info;
mod local;
pub mod output;
mod paths;
pub mod run;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use kv_proto::client::{Client, Options};
use tokio::time::{Instant, sleep};

use cli::{Cli, Exec, LocalAction, Program, Reach};
use command::{Command, Line, NodeCommand};
use dashboard::Look;
use error::{Class, CommandError};
use exec::{Settings, fail};
pub use local::NODE_MODE;
use output::{Format, Printer, Sink};

/// The pause before a waiting command tries to connect again.
const CONNECT_AGAIN: Duration = Duration::from_millis(100);

/// Runs the program with the arguments of the process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // The parser knows whether this is help, which goes to standard output, or an error.
            drop(error.print());
            return ExitCode::from(if error.use_stderr() { Class::Usage.exit_code() } else { 0 });
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return fail(&CommandError::failed(format!("no runtime: {error}")), Format::Table);
        }
    };
    runtime.block_on(run_program(cli))
}

async fn run_program(cli: Cli) -> ExitCode {
    match cli.program {
        None if !cli.look.once && dashboard::has_terminal() => {
            let done = show(cli.reach, cli.look).await;
            done.map_or_else(|error| fail(&error, Format::Table), |()| ExitCode::SUCCESS)
        }
        None if cli.look.once && !cli.look.json => {
            let target = if cli.reach.connect.is_empty() { "local".to_owned() } else { cli.reach.connect.join(",") };
            with_cluster(&cli.reach, Options::default(), Format::Table, async |client| {
                let mut printer = Printer::new(Format::Table, std::io::stdout().lock(), std::io::stderr());
                let done = dashboard::once::plain(target, cli.look.ascii, client, &mut printer).await;
                done.map_or_else(|error| fail(&error, Format::Table), |()| ExitCode::SUCCESS)
            })
            .await
        }
        None if cli.look.once => {
            let settings = Settings { format: Format::Json, yes: false };
            with_cluster(&cli.reach, Options::default(), Format::Json, async |client| {
                for command in [Command::Status, Command::Node(NodeCommand::Ls)] {
                    let line = Line { output: None, yes: false, command };
                    let code = exec::one(&line, client, settings).await;
                    if code != ExitCode::SUCCESS {
                        return code;
                    }
                }
                ExitCode::SUCCESS
            })
            .await
        }
        // Without a terminal there is no dashboard: the health in words, as a script would ask for it.
        None => {
            let line = Line { output: None, yes: false, command: Command::Status };
            with_cluster(&cli.reach, Options::default(), Format::Table, async |client| {
                exec::one(&line, client, Settings::default()).await
            })
            .await
        }
        Some(Program::Exec(exec)) => run_exec(exec, cli.reach).await,
        Some(Program::Local { action }) => {
            let format = format_of(&action);
            local::run(action).await.map_or_else(|error| fail(&error, format), |()| ExitCode::SUCCESS)
        }
        Some(Program::Info { output }) => {
            info::info(output).map_or_else(|error| fail(&error, output), |()| ExitCode::SUCCESS)
        }
        Some(Program::Completions { shell }) => {
            clap_complete::generate(shell, &mut Cli::command(), "kv-tui", &mut std::io::stdout());
            ExitCode::SUCCESS
        }
    }
}

/// Opens the dashboard of the cluster that is named, or of the local one, which is started unless it runs.
async fn show(reach: Reach, look: Look) -> Result<(), CommandError> {
    if !reach.connect.is_empty() {
        return dashboard::run(reach.connect.join(","), reach.connect, look).await;
    }
    let addresses = local::ensure().await?;
    let count = addresses.len();
    dashboard::run("local".to_owned(), addresses, look).await?;
    let mut printer = Printer::new(Format::Table, std::io::stdout(), std::io::stderr());
    printer.note(&format!("the {count} nodes of the local cluster go on running; kv-tui local stop ends them"));
    printer.flush()
}

fn format_of(action: &LocalAction) -> Format {
    match action {
        LocalAction::Start { place, .. }
        | LocalAction::Stop { place }
        | LocalAction::Status { place }
        | LocalAction::Destroy { place, .. } => place.output,
    }
}

async fn run_exec(exec: Exec, outer: Reach) -> ExitCode {
    let settings = Settings { format: exec.output, yes: exec.yes };
    let reach = if exec.reach.connect.is_empty() { outer } else { exec.reach };
    let options = Options {
        timeout: exec.timeout,
        attempt_timeout: (exec.timeout / 2).clamp(Duration::from_millis(1), Options::default().attempt_timeout),
        ..Options::default()
    };
    match exec.file {
        Some(file) => {
            with_cluster(&reach, options, exec.output, async |client| {
                exec::script(&file, exec.keep_going, client, settings).await
            })
            .await
        }
        None => run_words(&exec.command, &reach, options, settings).await,
    }
}

async fn run_words(words: &[OsString], reach: &Reach, options: Options, settings: Settings) -> ExitCode {
    let line = match exec::parse(words, settings) {
        Ok(line) => line,
        Err(error) if error.help => {
            exec::help(&error);
            return ExitCode::SUCCESS;
        }
        Err(error) => return fail(&error, settings.format),
    };
    if line.command.on_process().is_some() {
        return exec::on_process(&line, &reach.connect, settings).await;
    }
    let format = line.output.unwrap_or(settings.format);
    match connect_for(&line.command, reach, &options).await {
        Ok(client) => exec::one(&line, &client, settings).await,
        Err(error) => fail(&error, format),
    }
}

/// Connects to the cluster that is meant: the one named, else a running local one.
async fn with_cluster(
    reach: &Reach,
    options: Options,
    format: Format,
    run: impl AsyncFnOnce(&Client) -> ExitCode,
) -> ExitCode {
    match connect(reach, &options).await {
        Ok(client) => run(&client).await,
        Err(error) => fail(&error, format),
    }
}

async fn connect(reach: &Reach, options: &Options) -> Result<Client, CommandError> {
    let addresses = if reach.connect.is_empty() { local::addresses()? } else { reach.connect.clone() };
    Ok(Client::connect(&addresses, options.clone()).await?)
}

/// Connects for a command: one that waits also waits for the first node to come into reach.
async fn connect_for(command: &Command, reach: &Reach, options: &Options) -> Result<Client, CommandError> {
    let Command::Wait(args) = command else { return connect(reach, options).await };
    let deadline = Instant::now() + args.timeout;
    loop {
        match connect(reach, options).await {
            Err(error) if error.class == Class::Unavailable && Instant::now() < deadline => sleep(CONNECT_AGAIN).await,
            done => return done,
        }
    }
}
