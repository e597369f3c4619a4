//! Settings of a node: flags, then environment, then the configuration file, then defaults.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, ValueEnum};
use kv_core::config::ClusterConfig;
use kv_core::node::LOOPS_MAX;
use kv_core::ring::{PARTITIONS_MAX, WEIGHT_MAX, WEIGHT_MIN};
use kv_core::types::StoreId;
use kv_proto::address::{check_address, check_advertised, listen_address};
use kv_proto::peer::check_name;
use serde::Deserialize;

use crate::control::{Founding, StartMode};

/// Where a node listens if nobody says.
const LISTEN_DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7400);

/// A node of the distributed key-value store kv.
///
/// Without flags: a complete single-node store on 127.0.0.1:7400 with its data in the user's data folder. Prints
/// "ready NAME ADDR:PORT" when it accepts connections; SIGTERM or SIGINT finishes what is in flight, syncs and exits.
///
/// `kv-node recover` looks into the directories of stopped nodes, and founds another generation of a cluster whose control plane is
/// lost; see `kv-node recover --help`.
#[derive(Clone, Debug, Default, Parser, Deserialize)]
#[command(name = "kv-node", version)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Flags {
    /// A TOML file with settings under the names of the flags; flags and environment win.
    #[arg(long, env = "KV_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,

    /// Where the node keeps its data. A directory always belongs to one node of one cluster.
    #[arg(long, env = "KV_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Where it listens; port 0 picks a free port, kept from then on [default: 127.0.0.1:7400].
    #[arg(long, env = "KV_LISTEN", value_name = "ADDR:PORT")]
    pub listen: Option<String>,

    /// Where others reach it, if that is not where it listens; needed where it listens on all addresses, as with 0.0.0.0.
    #[arg(long, env = "KV_ADVERTISE", value_name = "ADDR:PORT")]
    pub advertise: Option<String>,

    /// The name that people use, unique in the cluster [default: the host's name and the port].
    #[arg(long, env = "KV_NAME")]
    pub name: Option<String>,

    /// Its failure domain: copies of a key go to different zones where there are enough; later, node zone changes it
    /// [default: default].
    #[arg(long, env = "KV_ZONE")]
    pub zone: Option<String>,

    /// Its capacity relative to the other members; later, node weight changes it [default: 1].
    #[arg(long, env = "KV_WEIGHT")]
    pub weight: Option<f64>,

    /// Founds a cluster, which forms when --expect members are there.
    #[arg(long, env = "KV_BOOTSTRAP", conflicts_with = "join", num_args = 0..=1, default_missing_value = "true")]
    pub bootstrap: Option<bool>,

    /// How many members the cluster waits for before it forms [default: 1].
    #[arg(long, env = "KV_EXPECT", value_name = "N")]
    pub expect: Option<u32>,

    /// How many copies of each key it keeps, as far as there are members [default: 3].
    #[arg(long, env = "KV_COPIES", value_name = "N")]
    pub copies: Option<u8>,

    /// Into how many partitions the ring is cut, a power of two up to 65,536 [default: 256].
    #[arg(long, env = "KV_PARTITIONS", value_name = "Q")]
    pub partitions: Option<u32>,

    /// For how long a client may repeat a request, in seconds; each key remembers what it replaced for longer than that [default: 600].
    #[arg(long, env = "KV_REPEAT_WITHIN_S", value_name = "S")]
    pub repeat_within_s: Option<u32>,

    /// Joins the cluster that these nodes belong to: a member if it is forming, else a spare.
    #[arg(long, env = "KV_JOIN", value_name = "ADDR:PORT", value_delimiter = ',')]
    pub join: Option<Vec<String>>,

    /// Takes the place of the member of the same --name whose store was lost: the id of that store, as `node show` says.
    #[arg(long, env = "KV_REPLACES", value_name = "STORE")]
    pub replaces: Option<String>,

    /// The file with the secret that all nodes of the cluster know. The founding node makes it if there is none; every other
    /// node gets a copy.
    #[arg(long, env = "KV_CLUSTER_SECRET_FILE", value_name = "PATH")]
    pub cluster_secret_file: Option<PathBuf>,

    /// Takes peers that show no secret: whoever reaches the port can then read, change and destroy everything. For networks
    /// in which everybody is trusted, and while a cluster gets its first secret.
    #[arg(long, env = "KV_ALLOW_OPEN_PEERS", num_args = 0..=1, default_missing_value = "true")]
    pub allow_open_peers: Option<bool>,

    /// Takes faults: whoever reaches the port can cut its links to other nodes, slow them down, stop or fill its disk, and set its clock
    /// wrong, to see what becomes of the cluster. Only for clusters on one machine.
    #[arg(long, env = "KV_ALLOW_FAULTS", num_args = 0..=1, default_missing_value = "true")]
    pub allow_faults: Option<bool>,

    /// Memory for decoded hot records, in MiB [default: 64].
    #[arg(long, env = "KV_HOT_MIB", value_name = "MIB")]
    pub hot_mib: Option<u32>,

    /// Memory for blocks of the store, in MiB [default: 64].
    #[arg(long, env = "KV_CACHE_MIB", value_name = "MIB")]
    pub cache_mib: Option<u32>,

    /// Disk for hints to members that are down, in MiB [default: 1024].
    #[arg(long, env = "KV_HINT_MIB", value_name = "MIB")]
    pub hint_mib: Option<u32>,

    /// Loops that share the partitions of this node, and its limits on memory; they run in turn on one thread [default: 1].
    #[arg(long, env = "KV_LOOPS", value_name = "COUNT")]
    pub loops: Option<u16>,

    /// Disk that copies of partitions leave free; with less they wait, in MiB [default: 256].
    #[arg(long, env = "KV_DISK_RESERVE_MIB", value_name = "MIB")]
    pub disk_reserve_mib: Option<u32>,

    /// How old a tombstone is at least when it is collected, in seconds, and twice the allowed clock skew. It is kept for as long as the
    /// cluster lets requests be repeated in any case [default: 600].
    #[arg(long, env = "KV_TOMBSTONE_AGE_S", value_name = "S")]
    pub tombstone_age_s: Option<u32>,

    /// Shows a wall clock that is wrong by so many milliseconds: for tests and drills.
    #[arg(long, env = "KV_CLOCK_AHEAD_MS", value_name = "MS", hide = true, allow_negative_numbers = true)]
    pub clock_ahead_ms: Option<i64>,

    /// Connections from clients; those of peers have places of their own. Fewer if the limit on open files does not allow for
    /// so many [default: 1024].
    #[arg(long, env = "KV_CONNECTIONS_MAX", value_name = "N")]
    pub connections_max: Option<u32>,

    /// Requests and streams that one connection may have open [default: 256].
    #[arg(long, env = "KV_STREAMS_MAX", value_name = "N")]
    pub streams_max: Option<u32>,

    /// How long a connection may be without a request before it is asked to close, in seconds [default: 900].
    #[arg(long, env = "KV_IDLE_TIMEOUT_S", value_name = "S")]
    pub idle_timeout_s: Option<u32>,

    /// Where log files go; without it the log goes to stderr.
    #[arg(long, env = "KV_LOG_DIR", value_name = "DIR")]
    pub log_dir: Option<PathBuf>,

    /// How the log is written [default: text].
    #[arg(long, env = "KV_LOG_FORMAT", value_enum)]
    pub log_format: Option<LogFormat>,

    /// What is logged: a level, or a filter such as "info,kv_node=debug" [default: info].
    #[arg(long, env = "KV_LOG", value_name = "FILTER")]
    pub log: Option<String>,
}

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Valid settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The data directory.
    pub data_dir: PathBuf,
    /// Where to listen; `None`: where the node listened before, or the default.
    pub listen: Option<SocketAddr>,
    /// Where others reach it.
    pub advertise: Option<String>,
    /// Its name, if it was given.
    pub name: Option<String>,
    /// Its failure domain, if it was given.
    pub zone: Option<String>,
    /// Its capacity, if it was given.
    pub weight: Option<f64>,
    /// How it comes to its cluster, if that was said.
    pub start_mode: Option<StartMode>,
    /// The lost store whose place the node takes.
    pub replaces: Option<StoreId>,
    /// The file with the cluster's secret.
    pub cluster_secret_file: Option<PathBuf>,
    /// Whether peers are taken that show no secret.
    pub allow_open_peers: bool,
    /// Whether faults may be injected.
    pub allow_faults: bool,
    /// The settings on which all nodes agree.
    pub cluster: ClusterConfig,
    /// Bytes of the hot tier.
    pub hot_bytes_max: usize,
    /// Bytes of the block cache.
    pub cache_bytes: u64,
    /// Bytes of hints.
    pub hint_bytes_max: u64,
    /// Loops of the node.
    pub loops: u16,
    /// Bytes that copying leaves free on the device of the data directory.
    pub disk_reserve_bytes: u64,
    /// How old tombstones are at least when they are collected.
    pub tombstone_age: Duration,
    /// By how many milliseconds the wall clock is shown wrong.
    pub clock_ahead_ms: i64,
    /// Connections from clients.
    pub connections_max: usize,
    /// Streams of one connection.
    pub streams_max: u32,
    /// How long a connection may be without a request.
    pub idle_timeout: Duration,
    /// The log.
    pub log: LogSettings,
}

/// Where the log goes.
#[derive(Clone, Debug, Default)]
pub struct LogSettings {
    /// A directory for files; `None`: stderr.
    pub dir: Option<PathBuf>,
    /// How it is written.
    pub format: LogFormat,
    /// What is logged.
    pub filter: Option<String>,
}

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The command line; its message is complete, and help is an error of this kind, too.
    #[error("{0}")]
    Flags(#[from] clap::Error),
    /// A value.
    #[error("{field}: {problem}")]
    Value {
        /// The flag.
        field: &'static str,
        /// The problem, the limit and the remedy.
        problem: String,
    },
    /// The configuration file.
    #[error("{path}: {problem}")]
    File {
        /// The file.
        path: String,
        /// What is wrong, with the line.
        problem: String,
    },
}

impl Settings {
    /// Reads flags, environment and file, and checks every value.
    ///
    /// # Errors
    /// The first thing that is wrong, by the name of its field.
    pub fn read(args: impl IntoIterator<Item = OsString>) -> Result<Self, SettingsError> {
        let flags = Flags::try_parse_from(args)?;
        let file = match &flags.config {
            Some(path) => read_file(path)?,
            None => Flags::default(),
        };
        Self::check(over(flags, file))
    }

    fn check(flags: Flags) -> Result<Self, SettingsError> {
        let value = |field: &'static str, problem: String| SettingsError::Value { field, problem };
        let named = |field: &'static str, name: &Option<String>| match name {
            Some(name) => check_name(field, name).map_err(|error| value(field, strip(field, &error.message))),
            None => Ok(()),
        };
        named("name", &flags.name)?;
        named("zone", &flags.zone)?;
        if let Some(weight) = flags.weight
            && !(WEIGHT_MIN..=WEIGHT_MAX).contains(&weight)
        {
            return Err(value("weight", format!("is {weight}; {WEIGHT_MIN} to {WEIGHT_MAX} are allowed")));
        }
        let listen = flags
            .listen
            .map(|listen| listen_address(&listen).map_err(|error| value("listen", strip("address", &error.message))))
            .transpose()?;
        if let Some(address) = &flags.advertise {
            check_advertised(address).map_err(|error| value("advertise", strip("address", &error.message)))?;
        }
        for address in flags.join.iter().flatten() {
            check_address(address).map_err(|error| value("join", strip("address", &error.message)))?;
        }
        let founding_flags = [flags.expect, flags.partitions, flags.repeat_within_s].iter().any(Option::is_some)
            || flags.copies.is_some();
        let bootstrap = flags.bootstrap == Some(true);
        let start_mode = match flags.join {
            Some(_) if bootstrap => {
                return Err(value(
                    "join",
                    "cannot be combined with bootstrap: a node founds a cluster or joins one".into(),
                ));
            }
            Some(_) if founding_flags => {
                return Err(value(
                    "join",
                    "cannot be combined with expect, copies, partitions or repeat-within-s: the founding node says how the cluster is made".into(),
                ));
            }
            Some(contacts) if contacts.is_empty() => {
                return Err(value("join", "names no address; name at least one node of the cluster".into()));
            }
            Some(contacts) => Some(StartMode::Join(contacts)),
            None if bootstrap || founding_flags => {
                let default = Founding::default();
                Some(StartMode::Bootstrap(Founding {
                    expect: flags.expect.unwrap_or(default.expect),
                    copies: flags.copies.unwrap_or(default.copies),
                    partitions: flags.partitions.unwrap_or(default.partitions),
                }))
            }
            None => None,
        };
        if let Some(StartMode::Bootstrap(founding)) = &start_mode {
            if founding.expect == 0 {
                return Err(value("expect", "is 0; a cluster forms with at least 1 member".into()));
            }
            if founding.copies == 0 {
                return Err(value("copies", "is 0; each key has at least 1 copy".into()));
            }
            if !founding.partitions.is_power_of_two() || founding.partitions > PARTITIONS_MAX {
                return Err(value(
                    "partitions",
                    format!("is {}; a power of two up to {PARTITIONS_MAX} is needed, such as 256", founding.partitions),
                ));
            }
        }
        let replaces = flags.replaces.map(|store| {
            u64::from_str_radix(&store, 16).map(StoreId).map_err(|error| {
                value("replaces", format!("{store:?} is not a store id ({error}); such as 29d9293300c5dfbb"))
            })
        });
        let replaces = replaces.transpose()?;
        let data_dir = match flags.data_dir {
            Some(dir) => dir,
            None => directories::ProjectDirs::from("", "", "kv")
                .map(|dirs| dirs.data_dir().join("node"))
                .ok_or_else(|| value("data-dir", "no home directory is known; name a directory".into()))?,
        };
        let mib = |mib: Option<u32>, default: u32| u64::from(mib.unwrap_or(default)) * 1024 * 1024;
        let at_least = |field, given: Option<u32>, default: u32, least: u32| match given.unwrap_or(default) {
            too_few if too_few < least => Err(value(field, format!("is {too_few}; {least} at least is needed"))),
            enough => Ok(enough),
        };
        let loops = flags.loops.unwrap_or(1);
        if !(1..=LOOPS_MAX).contains(&loops) {
            return Err(value("loops", format!("is {loops}; a node has 1 to {LOOPS_MAX} loops")));
        }
        let repeat_within = Duration::from_secs(at_least("repeat-within-s", flags.repeat_within_s, 600, 1)?.into());
        let hot_bytes_max = usize::try_from(mib(flags.hot_mib, 64)).unwrap_or(usize::MAX);
        Ok(Self {
            data_dir,
            listen,
            advertise: flags.advertise,
            name: flags.name,
            zone: flags.zone,
            weight: flags.weight,
            start_mode,
            replaces,
            cluster_secret_file: flags.cluster_secret_file,
            allow_open_peers: flags.allow_open_peers == Some(true),
            allow_faults: flags.allow_faults == Some(true),
            cluster: ClusterConfig { repeat_within, ..ClusterConfig::default() },
            hot_bytes_max,
            cache_bytes: mib(flags.cache_mib, 64),
            hint_bytes_max: mib(flags.hint_mib, 1024),
            loops,
            disk_reserve_bytes: mib(flags.disk_reserve_mib, 256),
            tombstone_age: Duration::from_secs(at_least("tombstone-age-s", flags.tombstone_age_s, 600, 1)?.into()),
            clock_ahead_ms: flags.clock_ahead_ms.unwrap_or(0),
            connections_max: usize::try_from(at_least("connections-max", flags.connections_max, 1024, 1)?)
                .unwrap_or(usize::MAX),
            streams_max: at_least("streams-max", flags.streams_max, 256, 8)?,
            idle_timeout: Duration::from_secs(at_least("idle-timeout-s", flags.idle_timeout_s, 900, 1)?.into()),
            log: LogSettings { dir: flags.log_dir, format: flags.log_format.unwrap_or_default(), filter: flags.log },
        })
    }

    /// Where to listen: as said, else as before, else the default.
    #[must_use]
    pub fn listen_or(&self, before: Option<SocketAddr>) -> SocketAddr {
        match (self.listen, before) {
            // Port 0 means any port, once: from then on it is that one.
            (Some(listen), Some(before)) if listen.port() == 0 => SocketAddr::new(listen.ip(), before.port()),
            (Some(listen), _) => listen,
            (None, before) => before.unwrap_or(LISTEN_DEFAULT),
        }
    }
}

/// What `first` leaves out, from `second`.
fn over(first: Flags, second: Flags) -> Flags {
    Flags {
        config: first.config,
        data_dir: first.data_dir.or(second.data_dir),
        listen: first.listen.or(second.listen),
        advertise: first.advertise.or(second.advertise),
        name: first.name.or(second.name),
        zone: first.zone.or(second.zone),
        weight: first.weight.or(second.weight),
        bootstrap: first.bootstrap.or(second.bootstrap),
        expect: first.expect.or(second.expect),
        copies: first.copies.or(second.copies),
        partitions: first.partitions.or(second.partitions),
        repeat_within_s: first.repeat_within_s.or(second.repeat_within_s),
        join: first.join.or(second.join),
        replaces: first.replaces.or(second.replaces),
        cluster_secret_file: first.cluster_secret_file.or(second.cluster_secret_file),
        allow_open_peers: first.allow_open_peers.or(second.allow_open_peers),
        allow_faults: first.allow_faults.or(second.allow_faults),
        hot_mib: first.hot_mib.or(second.hot_mib),
        cache_mib: first.cache_mib.or(second.cache_mib),
        hint_mib: first.hint_mib.or(second.hint_mib),
        loops: first.loops.or(second.loops),
        disk_reserve_mib: first.disk_reserve_mib.or(second.disk_reserve_mib),
        tombstone_age_s: first.tombstone_age_s.or(second.tombstone_age_s),
        clock_ahead_ms: first.clock_ahead_ms.or(second.clock_ahead_ms),
        connections_max: first.connections_max.or(second.connections_max),
        streams_max: first.streams_max.or(second.streams_max),
        idle_timeout_s: first.idle_timeout_s.or(second.idle_timeout_s),
        log_dir: first.log_dir.or(second.log_dir),
        log_format: first.log_format.or(second.log_format),
        log: first.log.or(second.log),
    }
}

fn read_file(path: &Path) -> Result<Flags, SettingsError> {
    let file = |problem: String| SettingsError::File { path: path.display().to_string(), problem };
    let text = std::fs::read_to_string(path).map_err(|error| file(format!("cannot be read: {error}")))?;
    toml::from_str(&text).map_err(|error| file(error.to_string()))
}

/// The message without the field that the error names already.
fn strip(field: &str, message: &str) -> String {
    message.strip_prefix(field).map_or(message, |rest| rest.trim_start_matches([':', ' '])).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(args: &[&str]) -> Result<Settings, SettingsError> {
        Settings::read(std::iter::once("kv-node").chain(args.iter().copied()).map(OsString::from))
    }

    fn problem(args: &[&str]) -> String {
        read(args).unwrap_err().to_string()
    }

    #[test]
    fn bad_values_are_named() {
        for (args, field) in [
            (&["--listen", "localhost"][..], "listen"),
            (&["--weight", "0"], "weight"),
            (&["--weight", "NaN"], "weight"),
            (&["--name", "a b"], "name"),
            (&["--zone", ""], "zone"),
            (&["--expect", "0"], "expect"),
            (&["--copies", "0"], "copies"),
            (&["--partitions", "100"], "partitions"),
            (&["--join", "nowhere"], "join"),
            (&["--join", "a:1", "--expect", "3"], "join"),
            (&["--advertise", "x"], "advertise"),
            (&["--connections-max", "0"], "connections-max"),
            (&["--streams-max", "0"], "streams-max"),
            (&["--idle-timeout-s", "0"], "idle-timeout-s"),
            (
                &["--advertise", "::1:7400"],
                "advertise: \"::1:7400\" is not host:port: an IPv6 address stands in brackets",
            ),
            (&["--advertise", "0.0.0.0:7400"], "advertise"),
            (&["--join", "a:1,::1:7400"], "join: \"::1:7400\""),
            (&["--listen", "::1:7400"], "listen: \"::1:7400\""),
        ] {
            assert!(problem(args).starts_with(field), "{args:?}: {}", problem(args));
        }
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_is_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kv.toml");
        std::fs::write(&path, "name = \"filed\"\nzone = \"az1\"\nhot-mib = 8\n").unwrap();
        let path = path.to_str().unwrap();
        let settings = read(&["--config", path, "--name", "flagged"]).unwrap();
        assert_eq!(settings.name.as_deref(), Some("flagged"));
        assert_eq!(settings.zone.as_deref(), Some("az1"));
        assert_eq!(settings.hot_bytes_max, 8 * 1024 * 1024);
        std::fs::write(path, "nmae = \"x\"\n").unwrap();
        let text = problem(&["--config", path]);
        assert!(text.contains("nmae") && text.contains("kv.toml"), "{text}");
    }

    #[test]
    fn a_free_port_is_kept() {
        let before = "127.0.0.1:4242".parse().ok();
        assert_eq!(read(&["--listen", "127.0.0.1:0"]).unwrap().listen_or(before).port(), 4242);
        assert_eq!(read(&[]).unwrap().listen_or(before).port(), 4242);
        assert_eq!(read(&["--listen", "127.0.0.1:9"]).unwrap().listen_or(before).port(), 9);
        assert_eq!(read(&[]).unwrap().listen_or(None).port(), 7400);
    }
}
