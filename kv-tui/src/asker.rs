//! Who asks for a change.

use kv_proto::limits::BY_BYTES_MAX;

/// Who asks, for the record: the user and the machine, as user@host.
pub(crate) fn asker() -> String {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let user = set("USER").or_else(|| set("LOGNAME")).or_else(|| set("USERNAME"));
    let user = user.unwrap_or_else(|| format!("uid{}", rustix::process::getuid().as_raw()));
    let system =
        ["/proc/sys/kernel/hostname", "/etc/hostname"].iter().find_map(|file| std::fs::read_to_string(file).ok());
    let host = system.or_else(|| set("HOSTNAME")).unwrap_or_default();
    // Half of the room for each: the nodes refuse longer texts.
    let part = |text: &str| {
        let plain: String = text.chars().filter(|letter| !letter.is_control() && !letter.is_whitespace()).collect();
        plain[..plain.floor_char_boundary((BY_BYTES_MAX - 1) / 2)].to_owned()
    };
    match part(&host) {
        host if host.is_empty() => part(&user),
        host => format!("{}@{host}", part(&user)),
    }
}
