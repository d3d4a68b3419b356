//! What the kernel knows of a connection that was lost: whether anything of a request has left.
//!
//! Promise: [`has_left`] is false only if no byte beyond the first `before` was ever handed to the
//! network, nor will be. Bytes that were acknowledged, or were not, prove nothing: a peer may have acted before its
//! acknowledgement, and a kernel acknowledges what no application reads.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};

use libc::{IPPROTO_TCP, TCP_INFO, c_void, getsockopt, socklen_t, tcp_info};

/// TCP_CLOSE: nothing that the socket still holds will ever be sent.
const CLOSED: u8 = 7;

/// Whether any byte has left the socket beyond the first `before` that were written to it, or may yet.
/// What is not known has left.
pub fn has_left(socket: &impl AsFd, before: u64) -> bool {
    info(socket).is_none_or(|info| {
        // A kernel that counts has counted at least the segment that asked for the connection. What was
        // sent again counts twice, which makes it leave the sooner.
        let counts = info.tcpi_segs_out > 0;
        !counts || info.tcpi_state != CLOSED || info.tcpi_bytes_sent > before
    })
}

/// What tcp(7) calls TCP_INFO; none if the kernel has no such count yet (before 4.19).
#[expect(unsafe_code, reason = "no safe crate reads TCP_INFO as far as the count of bytes sent")]
fn info(socket: &impl AsFd) -> Option<tcp_info> {
    let mut info = MaybeUninit::<tcp_info>::zeroed();
    let mut length = size_of::<tcp_info>() as socklen_t;
    // SAFETY: the descriptor is open for as long as it is borrowed. The kernel writes at most `length`
    // bytes to `info`, which is that large, and no longer after the call.
    let failed = unsafe {
        getsockopt(
            socket.as_fd().as_raw_fd(),
            IPPROTO_TCP,
            TCP_INFO,
            info.as_mut_ptr().cast::<c_void>(),
            &raw mut length,
        )
    };
    let has_count = length as usize >= std::mem::offset_of!(tcp_info, tcpi_bytes_retrans);
    // SAFETY: `tcp_info` is integers alone, for which every pattern is valid; what the kernel did not
    // write is zero.
    (failed == 0 && has_count).then(|| unsafe { info.assume_init() })
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use socket2::SockRef;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    #[test]
    fn what_was_sent_has_left_whatever_became_of_it() {
        let (mut near, mut far) = pair();
        near.write_all(b"first").unwrap();
        far.read_exact(&mut [0; 5]).unwrap();
        assert!(has_left(&near, 0));
        assert!(has_left(&near, 5), "as long as it is open, what it holds may leave yet");
        near.write_all(b"second").unwrap();
        // Unread, and the connection is reset for it.
        drop(far);
        assert!(near.read(&mut [0]).is_err());
        assert!(has_left(&near, 5));
    }

    #[test]
    fn what_found_no_room_at_the_peer_has_not() {
        let (mut near, far) = pair();
        SockRef::from(&far).set_recv_buffer_size(1).unwrap();
        near.set_nonblocking(true).unwrap();
        SockRef::from(&near).set_send_buffer_size(4 << 20).unwrap();
        // Until the peer's window is shut for certain.
        let mut written = 0u64;
        let piece = [0; 64 << 10];
        for _ in 0..40 {
            written += near.write(&piece).unwrap_or(0) as u64;
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let shut = near.write(b"a request").unwrap_or(0);
        assert!(shut > 0 || written > 1 << 20, "the test has made no room of its own");
        SockRef::from(&far).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(far);
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(near.read(&mut [0]).is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset));
        assert!(has_left(&near, 0) && !has_left(&near, written));
    }
}
