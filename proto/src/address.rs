//! Addresses, `host:port`: the one place that says what is one, for flags, reports of nodes, clients and files.
//!
//! A host is an IPv4 address, an IPv6 address in brackets or a DNS name. Names are resolved by the node that connects, each
//! time that it does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use kv_core::error::RequestError;

/// The longest DNS name, in bytes, and the longest part of one.
const NAME_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

/// Whatever is longer than this cannot be an address.
pub const ADDRESS_BYTES_MAX: usize = NAME_BYTES_MAX + 1 + ":65535".len();

/// The forms, for messages.
const FORMS: &str = "such as 10.0.0.7:7400, [2001:db8::7]:7400 or db1.example.org:7400";

/// What stands before the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Host {
    Ip(IpAddr),
    Name,
}

/// Checks an address that is to be connected to.
///
/// # Errors
/// `Invalid`, with what is wrong and the form.
pub fn check_address(address: &str) -> Result<(), RequestError> {
    parse(address).and_then(|(_, port)| check_port(port)).map_err(|why| wrong(address, &why))
}

/// Checks an address at which a node says that others reach it.
///
/// # Errors
/// `Invalid`, with what is wrong and the remedy; so are addresses that mean no one machine, such as `0.0.0.0`.
pub fn check_advertised(address: &str) -> Result<(), RequestError> {
    let (host, port) = parse(address).map_err(|why| wrong(address, &why))?;
    check_port(port).map_err(|why| wrong(address, &why))?;
    match host {
        Host::Ip(ip) if !is_of_one_machine(ip) => Err(RequestError::invalid(format!(
            "address: {address:?} is an address at which no other machine reaches this node; name one of this machine with \
             --advertise ADDR:PORT"
        ))),
        Host::Ip(_) | Host::Name => Ok(()),
    }
}

/// The address to listen on: one of this machine, or `0.0.0.0` or `[::]` for all of them. Port 0 means any free port.
///
/// # Errors
/// `Invalid`, with what is wrong and the form; so is a name, which may stand for several addresses.
pub fn listen_address(address: &str) -> Result<SocketAddr, RequestError> {
    match parse(address).map_err(|why| wrong(address, &why))? {
        (Host::Ip(ip), port) => Ok(SocketAddr::new(ip, port)),
        (Host::Name, port) => Err(RequestError::invalid(format!(
            "address: {address:?} names a host; say the address to listen on, such as 127.0.0.1:{port}, or 0.0.0.0:{port} \
             for all addresses of this machine"
        ))),
    }
}

/// Whether others reach what listens on `ip` by this address.
#[must_use]
pub fn is_of_one_machine(ip: IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    !ip.is_unspecified() && !ip.is_multicast() && !broadcast && !is_unspecified_within(ip)
}

/// `[::ffff:0.0.0.0]`.
fn is_unspecified_within(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some_and(|v4| v4.is_unspecified()))
}

fn wrong(address: &str, why: &str) -> RequestError {
    // What is too long to be an address is too long for a message.
    let shown: String = address.chars().take(ADDRESS_BYTES_MAX).collect();
    RequestError::invalid(format!("address: {shown:?} is not host:port: {why}; {FORMS}"))
}

fn check_port(port: u16) -> Result<(), String> {
    if port == 0 { Err("port 0 is none to connect to".to_owned()) } else { Ok(()) }
}

fn parse(address: &str) -> Result<(Host, u16), String> {
    if address.len() > ADDRESS_BYTES_MAX {
        return Err(format!("it has {} bytes, the limit is {ADDRESS_BYTES_MAX}", address.len()));
    }
    if let Some(rest) = address.strip_prefix('[') {
        let (host, port) = rest.split_once("]:").ok_or("after [ there must be an IPv6 address and ]:port")?;
        let ip: Ipv6Addr = host.parse().map_err(|_error| format!("{host:?} is not an IPv6 address"))?;
        return Ok((Host::Ip(ip.into()), parse_port(port)?));
    }
    let (host, port) = address.rsplit_once(':').ok_or("it has no port")?;
    if host.contains(':') {
        return Err(match address.parse::<Ipv6Addr>() {
            Ok(_) => format!("an IPv6 address stands in brackets: [{host}]:{port} or [{address}]:PORT"),
            Err(_) if host.parse::<Ipv6Addr>().is_ok() => {
                format!("an IPv6 address stands in brackets: [{host}]:{port}")
            }
            Err(_) => "it has more than one colon".to_owned(),
        });
    }
    let port = parse_port(port)?;
    // A name does not end in a number: what does is meant as an IPv4 address.
    let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    if !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit()) {
        let ip: Ipv4Addr = host.parse().map_err(|_error| format!("{host:?} is not an IPv4 address"))?;
        return Ok((Host::Ip(ip.into()), port));
    }
    check_name(host)?;
    Ok((Host::Name, port))
}

fn parse_port(port: &str) -> Result<u16, String> {
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let number = if digits { port.parse().ok() } else { None };
    number.ok_or_else(|| format!("{port:?} is not a port from 1 to 65535"))
}

fn check_name(host: &str) -> Result<(), String> {
    let name = host.strip_suffix('.').unwrap_or(host);
    let fits = |label: &str| {
        (1..=LABEL_BYTES_MAX).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.is_empty() {
        return Err("it has no host".to_owned());
    }
    if name.len() > NAME_BYTES_MAX || !name.split('.').all(fits) {
        return Err(format!("{host:?} is not the name of a host"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_all_forms_are_taken() {
        let long = format!("{}.{}:1", "a".repeat(63), "b".repeat(63));
        for address in [
            "10.0.0.7:7400",
            "127.0.0.1:1",
            "[::1]:7400",
            "[2001:db8::7]:65535",
            "[::ffff:10.0.0.7]:7400",
            "localhost:7400",
            "db-1.example.org:7400",
            "db1.example.org.:7400",
            "kv_1:7400",
            "3com.example:7400",
            &long,
        ] {
            assert_eq!(check_address(address), Ok(()), "{address}");
            assert_eq!(check_advertised(address), Ok(()), "{address}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_reason() {
        for (address, why) in [
            ("", "no port"),
            ("host", "no port"),
            (":7400", "no host"),
            ("host:", "not a port"),
            ("host:0", "port 0"),
            ("host:+80", "not a port"),
            ("host:70000", "not a port"),
            ("http://host:1", "more than one colon"),
            ("host/x:1", "not the name of a host"),
            ("a b:1", "not the name of a host"),
            ("user@host:1", "not the name of a host"),
            ("höst:1", "not the name of a host"),
            ("a..b:1", "not the name of a host"),
            ("-a:1", "not the name of a host"),
            ("host\n:1", "not the name of a host"),
            ("%00:1", "not the name of a host"),
            ("10.0.0.300:1", "not an IPv4 address"),
            ("10.1:1", "not an IPv4 address"),
            ("::1:7400", "brackets: [::1]:7400"),
            ("2001:db8::7", "brackets"),
            ("a:b:1", "more than one colon"),
            ("[::1]", "]:port"),
            ("[::1]7400", "]:port"),
            ("[10.0.0.1]:7400", "not an IPv6 address"),
            ("[fe80::1%eth0]:7400", "not an IPv6 address"),
            ("[]:7400", "not an IPv6 address"),
            (&format!("{}:1", "a".repeat(64)), "not the name of a host"),
            (&"a".repeat(1000), "limit is 260"),
        ] {
            let error = check_address(address).expect_err(address);
            assert!(error.message.contains(why) && error.message.contains("such as"), "{address:?}: {error}");
            assert!(check_advertised(address).is_err() && listen_address(address).is_err() || address == "host:0");
        }
    }

    #[test]
    fn addresses_of_no_one_machine_are_not_advertised() {
        for address in ["0.0.0.0:7400", "[::]:7400", "[::ffff:0.0.0.0]:7400", "224.0.0.1:7400", "255.255.255.255:1"] {
            let error = check_advertised(address).expect_err(address);
            assert!(error.message.contains("--advertise"), "{error}");
        }
        assert_eq!(check_address("0.0.0.0:7400"), Ok(()), "to connect to it is nobody's harm");
    }

    #[test]
    fn what_to_listen_on_is_an_address_of_this_machine() {
        for (address, expected) in [
            ("0.0.0.0:7400", "0.0.0.0:7400"),
            ("[::]:0", "[::]:0"),
            ("[::1]:7400", "[::1]:7400"),
            ("10.0.0.1:0", "10.0.0.1:0"),
        ] {
            assert_eq!(listen_address(address).map(|found| found.to_string()), Ok(expected.to_owned()));
        }
        let error = listen_address("localhost:7400").expect_err("a name");
        assert!(error.message.contains("127.0.0.1:7400") && error.message.contains("0.0.0.0:7400"), "{error}");
    }
}
