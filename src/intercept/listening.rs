//! What is listened on in this network namespace, whoever does: the kernel's own table, read from
//! `/proc`.
//!
//! It promises to name every listening TCP socket of both families, and to read no further: in front
//! of a busy proxy the rest of the table is long. A line that it cannot read is passed over.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The tables of both families. Processes see those of their own namespace.
const TABLES: [&str; 2] = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];

/// The state of a listening socket, as the table writes it (`TCP_LISTEN`).
const LISTEN: &str = "0A";

/// The addresses that are listened on.
///
/// # Errors
/// A table that cannot be read. A family that this machine lacks has none, and is no error.
pub fn listening() -> io::Result<Vec<SocketAddr>> {
    let mut all = Vec::new();
    for table in TABLES {
        match File::open(table) {
            Ok(file) => all.extend(listed(BufReader::new(file))?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// Whether what listens on `listener` takes connections to `target`.
pub fn takes(listener: SocketAddr, target: SocketAddr) -> bool {
    let (own, wanted) = (listener.ip().to_canonical(), target.ip().to_canonical());
    let everything = match own {
        // Whether it takes IPv4 too is not in the table; by default it does.
        IpAddr::V6(own) => own.is_unspecified(),
        IpAddr::V4(own) => own.is_unspecified() && wanted.is_ipv4(),
    };
    listener.port() == target.port() && (everything || own == wanted)
}

/// The listening sockets of one table, which come first in it (the kernel's
/// Documentation/networking/proc_net_tcp.rst).
fn listed(table: impl BufRead) -> io::Result<Vec<SocketAddr>> {
    let mut listed = Vec::new();
    // The first line names the columns.
    for line in table.lines().skip(1) {
        let line = line?;
        // Their number, the local address, the remote one, the state.
        let mut columns = line.split_ascii_whitespace().skip(1);
        let (local, state) = (columns.next(), columns.nth(1));
        if state.is_some_and(|state| state != LISTEN) {
            break;
        }
        listed.extend(local.and_then(address));
    }
    Ok(listed)
}

/// An address as the table writes it: words of 32 bits in this machine's order, and the port, all in
/// hexadecimal.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let word = |at: usize| {
        let digits = ip.get(at * 8..at * 8 + 8)?;
        u32::from_str_radix(digits, 16).ok().map(u32::to_ne_bytes)
    };
    let ip: IpAddr = match ip.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let mut bytes = [0; 16];
            for (at, four) in bytes.chunks_exact_mut(4).enumerate() {
                four.copy_from_slice(&word(at)?);
            }
            Ipv6Addr::from(bytes).into()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    /// As a little-endian machine writes it.
    #[cfg(target_endian = "little")]
    #[test]
    fn a_table_is_read_as_far_as_it_listens() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid
   0: 0100007F:3A99 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1337        0 7 1 0000 100
   1: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 8 1 0000 100
 nonsense
   2: 0100007F:1F90 0600007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 9 1 0000 20
   3: 0200007F:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 9 1 0000 100
";
        let listed = listed(table.as_bytes()).expect("read");
        assert_eq!(listed, [at("127.0.0.1:15001"), at("0.0.0.0:8080")]);
        let table = "  sl  local_address                         remote_address                        st
   0: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 0:0
   1: 000077FD000000000000000010000000:1F90 00000000000000000000000000000000:0000 0A 0:0
   2: 0000000000000000FFFF00000100007F:0051 00000000000000000000000000000000:0000 0A 0:0
";
        let listed = super::listed(table.as_bytes()).expect("read");
        assert_eq!(listed, [at("[::1]:80"), at("[fd77::10]:8080"), at("[::ffff:127.0.0.1]:81")]);
    }

    #[test]
    fn what_is_no_address_is_passed_over() {
        for text in
            ["", ":", "0100007F", "0100007F:", "0100007F:1F90F", "100007F:1F90", "0100007G:1F90", "ä:1"]
        {
            assert_eq!(address(text), None, "{text}");
        }
        assert_eq!(listed(&b""[..]).expect("read"), []);
    }

    #[test]
    fn a_listener_takes_what_is_sent_to_its_address_or_to_any() {
        for (listener, target, expected) in [
            ("10.0.0.1:80", "10.0.0.1:80", true),
            ("10.0.0.1:80", "10.0.0.1:81", false),
            ("127.0.0.1:80", "10.0.0.1:80", false),
            ("0.0.0.0:80", "10.0.0.1:80", true),
            ("0.0.0.0:80", "[fd00::1]:80", false),
            ("[::]:80", "[fd00::1]:80", true),
            ("[::]:80", "10.0.0.1:80", true),
            ("[::ffff:10.0.0.1]:80", "10.0.0.1:80", true),
            ("[::1]:80", "[fd00::1]:80", false),
        ] {
            assert_eq!(takes(at(listener), at(target)), expected, "{listener} {target}");
        }
    }

    #[test]
    fn the_kernel_names_a_listener_for_as_long_as_there_is_one() {
        for local in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(local).expect("loopback");
            let address = listener.local_addr().expect("bound");
            assert!(listening().expect("/proc").contains(&address), "{address}");
            let _connected = TcpStream::connect(address).expect("connected");
            drop(listener);
            assert!(!listening().expect("/proc").contains(&address), "{address}, closed");
        }
    }
}
