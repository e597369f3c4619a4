//! What the benches of faults have in common around their turns.

use std::process::ExitCode;

use super::Outcome;

/// Runs a bench; exit code 1 if something did not hold, or it could not go on.
pub(crate) fn run<A>(
    name: &str,
    workers: usize,
    arguments: Outcome<A>,
    bench: impl AsyncFnOnce(&A) -> Outcome<bool>,
) -> ExitCode {
    let ended = arguments.and_then(|arguments| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build()?;
        runtime.block_on(bench(&arguments))
    });
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The flags with their values.
pub(crate) fn flags() -> Outcome<Vec<(String, String)>> {
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    let mut flags = Vec::new();
    while let Some(flag) = words.next() {
        let value = words.next().ok_or_else(|| format!("{flag} has no value"))?;
        flags.push((flag, value));
    }
    Ok(flags)
}

/// The fault of a name.
pub(crate) fn named<F: Copy>(faults: &[(F, &str)], name: &str) -> Outcome<F> {
    let known = faults.iter().find(|fault| fault.1 == name).map(|fault| fault.0);
    let names: Vec<&str> = faults.iter().map(|fault| fault.1).collect();
    Ok(known.ok_or_else(|| format!("there is no fault {name:?}; there are {}", names.join(", ")))?)
}

/// Prints what held and what did not; says whether all did.
pub(crate) fn all_hold(checks: &[(&str, bool)]) -> bool {
    println!();
    for (what, held) in checks {
        println!("{}: {what}", if *held { "held" } else { "VIOLATED" });
    }
    checks.iter().all(|check| check.1)
}
