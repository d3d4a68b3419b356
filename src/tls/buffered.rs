//! A socket under TLS that reads widely when much is coming.
//!
//! The TLS library asks for 4 KiB at a time, which is four system calls for every record of a
//! body. While reads come back full, this reads ahead into a buffer of its own; otherwise it only
//! passes through, and holds nothing.

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// What is read ahead.
const AHEAD: usize = 64 << 10;

/// A socket, with what was read ahead.
#[derive(Debug)]
pub struct Buffered {
    socket: TcpStream,
    ahead: BytesMut,
    /// Whether the last read came back full.
    full: bool,
}

impl Buffered {
    /// Nothing has been read yet.
    pub fn new(socket: TcpStream) -> Self {
        Self { socket, ahead: BytesMut::new(), full: false }
    }

    /// The socket. What is read from it directly is lost to TLS.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }
}

impl AsyncRead for Buffered {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { socket, ahead, full } = self.get_mut();
        if ahead.is_empty() && !*full {
            let (before, room) = (into.filled().len(), into.remaining());
            ready!(Pin::new(socket).poll_read(cx, into))?;
            *full = room > 0 && into.filled().len() - before == room;
            return Poll::Ready(Ok(()));
        }
        if ahead.is_empty() {
            ready!(socket.poll_read_ready(cx))?;
            ahead.reserve(AHEAD);
            // It keeps nothing between two polls but the buffer itself.
            let read = ready!(pin!(socket.read_buf(ahead)).poll(cx))?;
            *full = read >= AHEAD / 8;
        }
        let n = ahead.len().min(into.remaining());
        into.put_slice(&ahead[..n]);
        ahead.advance(n);
        if ahead.is_empty() && !*full {
            *ahead = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Buffered {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn what_is_read_ahead_is_neither_lost_nor_kept() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let sent: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        let mut buffered = Buffered::new(socket);
        let writing = async {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
        };
        let reading = async {
            let (mut all, mut piece) = (Vec::new(), [0; 4096]);
            loop {
                match buffered.read(&mut piece).await.unwrap() {
                    0 => return all,
                    n => all.extend_from_slice(&piece[..n]),
                }
            }
        };
        let ((), all) = tokio::join!(writing, reading);
        assert!(all == sent);
        assert_eq!(buffered.ahead.capacity(), 0, "nothing is held at the end");
    }
}
