//! The terminal of the kv store: one command language for scripts and people, and the local cluster.

mod asker;
mod cli;
pub mod command;
pub mod dashboard;
pub mod error;
pub mod exec;
mod files;
mod info;
mod local;
pub mod observe;
pub mod output;
mod paths;
pub mod run;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use kv_proto::client::{Client, Options};
use tokio::time::{Instant, sleep};

use cli::{Cli, Exec, Program, Reach};
use command::{Command, Line, NodeCommand};
use dashboard::DisplayOptions;
use dashboard::config::{Config, Context};
use error::{Class, CommandError};
use exec::{Settings, fail};
pub use local::NODE_MODE;
use local::{LocalAction, LocalOpen};
use output::{Format, Printer, Sink, closed, print};
use paths::Paths;

/// The pause before a waiting command tries to connect again.
const CONNECT_AGAIN: Duration = Duration::from_millis(100);

/// Runs the program with the arguments of the process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // The parser knows whether this is help, which goes to standard output, or an error.
            let printed = error.print();
            return match printed.map_err(|error| closed(&error)) {
                _ if error.use_stderr() => ExitCode::from(Class::Usage.exit_code()),
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => fail(&error, Format::Table),
            };
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return fail(&CommandError::failed(format!("no runtime: {error}")), Format::Table);
        }
    };
    let code = runtime.block_on(run_program(cli));
    files::remove_incomplete();
    code
}

async fn run_program(cli: Cli) -> ExitCode {
    let (config, problem) =
        Paths::new().map_or_else(|_| (Config::default(), None), |paths| Config::read(&paths.config_file()));
    let context = config.context.clone().filter(|_| cli.reach.connect.is_empty());
    // A context stands for what its flags would say.
    let named = |connect: Vec<String>| if connect.is_empty() { named_nodes(context.as_ref()) } else { connect };
    let read_only = cli.display.read_only || context.as_ref().is_some_and(|context| context.read_only);
    let display = DisplayOptions { read_only, ..cli.display };
    if let (Some(problem), false) = (&problem, is_dashboard(&cli)) {
        Printer::new(Format::Table, std::io::stdout(), std::io::stderr()).note(problem);
    }
    match cli.program {
        None => {
            let target = context.as_ref().map(|context| context.name.clone());
            let reach = Reach { connect: named(cli.reach.connect) };
            let local = if reach.connect.is_empty() { Some(LocalOpen::default()) } else { None };
            show(Show { reach, target, local, display, config, problem }).await
        }
        Some(Program::Local { open, display: own, action: None }) => {
            let display = DisplayOptions { read_only: cli.display.read_only, ..display }.or(own);
            show(Show { reach: Reach::default(), target: None, local: Some(open), display, config, problem }).await
        }
        Some(Program::Exec(exec)) => {
            let own = exec.reach.connect.clone();
            let reach = Reach { connect: if own.is_empty() { named(cli.reach.connect) } else { own } };
            let read_only =
                exec.read_only || if exec.reach.connect.is_empty() { display.read_only } else { cli.display.read_only };
            run_exec(Exec { reach, read_only, ..exec }).await
        }
        Some(Program::Local { action: Some(action), .. }) => {
            let format = format_of(&action);
            local::run(action).await.map_or_else(|error| fail(&error, format), |()| ExitCode::SUCCESS)
        }
        Some(Program::Info { output }) => {
            info::info(output).map_or_else(|error| fail(&error, output), |()| ExitCode::SUCCESS)
        }
        Some(Program::Completions { shell }) => {
            // The generator panics where it cannot write.
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "kv-tui", &mut text);
            print(&text).map_or_else(|error| fail(&error, Format::Table), |()| ExitCode::SUCCESS)
        }
    }
}

fn named_nodes(context: Option<&Context>) -> Vec<String> {
    context.map(|context| context.connect.clone()).unwrap_or_default()
}

/// Whether the dashboard opens; it shows notices itself.
fn is_dashboard(cli: &Cli) -> bool {
    let (shown, once) = match &cli.program {
        None => (true, cli.display.once),
        Some(Program::Local { display, action: None, .. }) => (true, cli.display.once || display.once),
        Some(_) => (false, false),
    };
    shown && !once && dashboard::has_terminal()
}

/// What is to be shown, and how.
struct Show {
    reach: Reach,
    target: Option<String>,
    /// The local cluster, started unless it runs.
    local: Option<LocalOpen>,
    display: DisplayOptions,
    config: Config,
    problem: Option<String>,
}

/// Shows a cluster: on the screen, or once as text.
async fn show(what: Show) -> ExitCode {
    let on_screen = !what.display.once && dashboard::has_terminal();
    // A look at what runs starts nothing, unless it was asked for.
    let open = what.local.as_ref().filter(|open| on_screen || open.is_asked());
    let local = match open {
        None => None,
        Some(open) => match local::open(open, !on_screen).await {
            Ok(shown) => Some(shown),
            Err(error) => return fail(&error, Format::Table),
        },
    };
    let rescue = local.as_ref().and_then(local::Shown::rescue);
    if let Some(rescue) = &rescue {
        dashboard::terminal::say_after_panic(rescue.clone());
    }
    let done = if on_screen {
        show_on_screen(what, local.as_ref()).await.map(|()| ExitCode::SUCCESS)
    } else {
        Ok(show_once(&what, local.as_ref()).await)
    };
    let left = match local {
        Some(local) => local.leave().await,
        None => Ok(String::new()),
    };
    let mut printer = Printer::new(Format::Table, std::io::stdout(), std::io::stderr());
    match (&left, &rescue) {
        (Ok(text), _) if !text.is_empty() && on_screen => printer.note(text),
        (Err(_), Some(rescue)) => printer.note(rescue),
        _ => {}
    }
    match (done, left) {
        (Ok(code), Ok(_)) => code,
        (Err(error), _) | (_, Err(error)) => fail(&error, Format::Table),
    }
}

async fn show_on_screen(what: Show, local: Option<&local::Shown>) -> Result<(), CommandError> {
    let addresses = local.map_or(what.reach.connect, |local| local.addresses.clone());
    let target = match (what.target, local) {
        (_, Some(_)) => "local".to_owned(),
        (Some(name), None) => name,
        (None, None) => addresses.join(","),
    };
    let (notify, notices) = tokio::sync::mpsc::unbounded_channel();
    if let Some(problem) = what.problem {
        // The receiver is here.
        notify.send(problem).unwrap_or(());
    }
    if let Some(local) = local {
        local.watch(&notify);
    }
    let (display, config) = (what.display, what.config);
    dashboard::run(dashboard::Start { target, addresses, display, config, notices: (notify, notices) }).await
}

/// Without taking the terminal: the overview as text, or what scripts ask for.
async fn show_once(what: &Show, local: Option<&local::Shown>) -> ExitCode {
    let connect = local.map_or_else(|| what.reach.connect.clone(), |local| local.addresses.clone());
    let reach = Reach { connect };
    let (commands, format) = match (what.display.once, what.display.json) {
        (true, true) => (vec![Command::Status, Command::Node(NodeCommand::Ls)], Format::Json),
        (true, false) => {
            let named =
                if local.is_some() || reach.connect.is_empty() { "local".to_owned() } else { reach.connect.join(",") };
            let target = what.target.clone().unwrap_or(named);
            return with_cluster(&reach, Options::default(), Format::Table, async |client| {
                let mut printer = Printer::new(Format::Table, std::io::stdout().lock(), std::io::stderr());
                let done = dashboard::once::plain(target, what.display.ascii, client, &mut printer).await;
                done.map_or_else(|error| fail(&error, Format::Table), |()| ExitCode::SUCCESS)
            })
            .await;
        }
        // Without a terminal there is no dashboard: the health in words, as a script would ask for it.
        (false, _) => (vec![Command::Status], Format::Table),
    };
    with_cluster(&reach, Options::default(), format, async |client| {
        for command in commands {
            let line = Line { output: None, yes: false, command };
            let code = exec::one(&line, client, Settings { format, ..Settings::default() }).await;
            if code != ExitCode::SUCCESS {
                return code;
            }
        }
        if !what.display.json {
            return ExitCode::SUCCESS;
        }
        let mut printer = Printer::new(format, std::io::stdout().lock(), std::io::stderr());
        let done = dashboard::once::newest_operation(client, &mut printer).await;
        done.map_or_else(|error| fail(&error, format), |()| ExitCode::SUCCESS)
    })
    .await
}

fn format_of(action: &LocalAction) -> Format {
    match action {
        LocalAction::Start { place, .. }
        | LocalAction::Stop { place }
        | LocalAction::Status { place }
        | LocalAction::Destroy { place, .. } => place.output,
    }
}

async fn run_exec(exec: Exec) -> ExitCode {
    let settings = Settings { format: exec.output, yes: exec.yes, read_only: exec.read_only };
    let reach = exec.reach;
    let options = Options {
        timeout: exec.timeout,
        attempt_timeout: (exec.timeout / 2).clamp(Duration::from_millis(1), Options::default().attempt_timeout),
        only_given: exec.only,
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
            return exec::help(&error).map_or_else(|error| fail(&error, settings.format), |()| ExitCode::SUCCESS);
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
