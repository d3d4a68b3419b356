//! A connection on which HTTP/2 is spoken to a peer that may know none of it.
//!
//! Promises: a peer that answers in HTTP/1, or not at all, is told from one that was lost. HTTP/2
//! begins with a SETTINGS frame, whose length begins with a zero (RFC 9113 section 3.4).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The kind of error that says that a peer speaks something else.
pub(super) const NOT_HTTP_2: io::ErrorKind = io::ErrorKind::InvalidData;

/// A connection, of which the first byte decides.
pub(super) struct Peer<IO> {
    io: IO,
    heard: bool,
    /// Why nothing can be sent, while what it said is awaited.
    lost: Option<io::Error>,
}

impl<IO> Peer<IO> {
    pub(super) fn new(io: IO) -> Self {
        Self { io, heard: false, lost: None }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Peer<IO> {
    fn hear(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        Poll::Ready(match buf.filled().get(before) {
            Some(0) => {
                self.heard = true;
                Ok(())
            }
            Some(_) => Err(io::Error::new(NOT_HTTP_2, "the peer does not speak HTTP/2")),
            None => Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the peer closed without a word; perhaps it does not speak HTTP/2",
            )),
        })
    }

    /// The outcome of a write. A peer that refuses our first words may have said why, and then stopped
    /// listening: what it said is waited for, since it has arrived before.
    fn written(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut IO>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let lost = match self.lost.take() {
            Some(lost) => lost,
            None => match ready!(write(Pin::new(&mut self.io), cx)) {
                Err(lost) if !self.heard && was_closed(&lost) => lost,
                written => return Poll::Ready(written),
            },
        };
        let mut first = [0];
        match self.hear(cx, &mut ReadBuf::new(&mut first)) {
            Poll::Ready(Err(why)) if why.kind() == NOT_HTTP_2 => Poll::Ready(Err(why)),
            Poll::Ready(_) => Poll::Ready(Err(lost)),
            Poll::Pending => {
                self.lost = Some(lost);
                Poll::Pending
            }
        }
    }
}

fn was_closed(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for Peer<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let peer = self.get_mut();
        if peer.heard { Pin::new(&mut peer.io).poll_read(cx, buf) } else { peer.hear(cx, buf) }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Peer<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().written(cx, |io, cx| io.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().written(cx, |io, cx| io.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    async fn said(words: &'static [u8]) -> io::Result<u8> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await?;
            stream.read_u8().await?;
            // With what it has not read of ours, its close is a reset.
            stream.write_all(words).await
        });
        let mut peer = Peer::new(TcpStream::connect(address).await?);
        peer.write_all(b"PRI").await?;
        server.await??;
        for _ in 0..10 {
            peer.write_all(b"more").await?;
        }
        peer.read_u8().await
    }

    #[tokio::test]
    async fn what_a_peer_said_before_it_closed_is_heard() {
        assert_eq!(said(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap_err().kind(), NOT_HTTP_2);
        assert_ne!(said(b"").await.unwrap_err().kind(), NOT_HTTP_2);
        assert_ne!(said(b"\0\0\0\x04\0\0\0\0\0").await.map_err(|e| e.kind()), Err(NOT_HTTP_2));
    }
}
