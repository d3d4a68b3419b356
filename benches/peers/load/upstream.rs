//! The applications: one that answers requests, and one that takes, gives or echoes bytes.

use std::io::{self, ErrorKind, IoSlice, Read, Write};

use mio::net::TcpStream;

use crate::serve::Service;

/// A connection's first byte, where bytes are carried: all that follows is read and dropped.
pub(crate) const SINK: u8 = b'U';
/// Bytes without end are sent.
pub(crate) const SOURCE: u8 = b'D';
/// Everything is sent back, this byte too.
pub(crate) const ECHO: u8 = b'E';

const FIELDS: usize = 64;
const MAX_HEAD: usize = 64 << 10;

/// The body of an answer to `/`.
const SMALL: u64 = 100;

/// What bodies are made of.
static BODY: [u8; 64 << 10] = [b'x'; 64 << 10];

/// A connection with requests.
#[derive(Default)]
pub(crate) struct Requests {
    /// Of a head that has not come whole.
    head: Vec<u8>,
    /// What is missing of the body that is being read.
    upload: u64,
    /// How long the answer's body will be, once the request was read.
    due: Option<u64>,
    answer: Answer,
}

#[derive(Default)]
struct Answer {
    head: Vec<u8>,
    body: u64,
}

impl Service for Requests {
    fn turn(&mut self, stream: &mut TcpStream, ends: bool, chunk: &mut [u8]) -> io::Result<()> {
        if !self.answer.send(stream)? {
            // What comes meanwhile stays where it is: nothing here pipelines.
            return Ok(());
        }
        loop {
            let read = match stream.read(chunk) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            self.take(&chunk[..read])?;
            if self.upload == 0
                && let Some(body) = self.due.take()
            {
                self.answer = Answer::new(body);
                if !self.answer.send(stream)? {
                    return Ok(());
                }
            }
            if read < chunk.len() && !ends {
                return Ok(());
            }
        }
    }
}

impl Requests {
    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        let body = if self.upload > 0 {
            bytes.len()
        } else {
            self.head.extend_from_slice(bytes);
            let Some(length) = self.parse()? else { return Ok(()) };
            let body = self.head.len() - length;
            self.head.clear();
            body
        };
        self.upload = self.upload.checked_sub(body as u64).ok_or(ErrorKind::InvalidData)?;
        Ok(())
    }

    /// Reads the head, and returns its length if it is whole.
    fn parse(&mut self) -> io::Result<Option<usize>> {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS];
        let mut request = httparse::Request::new(&mut fields);
        let parsed = request.parse(&self.head).map_err(|_| ErrorKind::InvalidData)?;
        let httparse::Status::Complete(length) = parsed else {
            return if self.head.len() > MAX_HEAD { Err(ErrorKind::InvalidData.into()) } else { Ok(None) };
        };
        for field in request.headers.iter() {
            if field.name.eq_ignore_ascii_case("content-length") {
                let text = std::str::from_utf8(field.value).map_err(|_| ErrorKind::InvalidData)?;
                self.upload = text.parse().map_err(|_| ErrorKind::InvalidData)?;
            } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
                // Every load here states its length, and no proxy has a reason to take it away.
                return Err(ErrorKind::InvalidData.into());
            }
        }
        let asked = request.path.unwrap_or_default().trim_start_matches('/').parse();
        self.due = Some(asked.unwrap_or(SMALL));
        Ok(Some(length))
    }
}

impl Answer {
    /// With the fields that a web server sends.
    fn new(body: u64) -> Self {
        let head = format!(
            "HTTP/1.1 200 OK\r\nServer: application\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\n\
             Content-Type: application/octet-stream\r\nContent-Length: {body}\r\nConnection: keep-alive\r\n\r\n"
        );
        Self { head: head.into_bytes(), body }
    }

    /// Sends what the connection takes. True once all is sent.
    fn send(&mut self, stream: &mut TcpStream) -> io::Result<bool> {
        while !self.head.is_empty() || self.body > 0 {
            let body = &BODY[..self.body.min(BODY.len() as u64) as usize];
            match stream.write_vectored(&[IoSlice::new(&self.head), IoSlice::new(body)]) {
                Ok(sent) => {
                    let of_head = sent.min(self.head.len());
                    self.head.drain(..of_head);
                    self.body -= (sent - of_head) as u64;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// A connection with bytes.
#[derive(Default)]
pub(crate) struct Bytes {
    /// Its first byte.
    way: Option<u8>,
    /// An echo that the connection did not take yet.
    unsent: Vec<u8>,
}

impl Service for Bytes {
    fn turn(&mut self, stream: &mut TcpStream, _ends: bool, chunk: &mut [u8]) -> io::Result<()> {
        if self.way.is_none() {
            let mut first = [0];
            match stream.read(&mut first) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) => self.way = Some(first[0]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
            if first[0] == ECHO {
                self.unsent.push(ECHO);
            }
        }
        let moved = match self.way {
            Some(SINK) => sink(stream, chunk),
            Some(SOURCE) => source(stream),
            _ => self.echo(stream, chunk),
        };
        match moved {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            moved => moved,
        }
    }
}

impl Bytes {
    fn echo(&mut self, stream: &mut TcpStream, chunk: &mut [u8]) -> io::Result<()> {
        loop {
            while !self.unsent.is_empty() {
                let sent = stream.write(&self.unsent)?;
                self.unsent.drain(..sent);
            }
            let read = stream.read(chunk)?;
            if read == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            self.unsent.extend_from_slice(&chunk[..read]);
        }
    }
}

fn sink(stream: &mut TcpStream, chunk: &mut [u8]) -> io::Result<()> {
    while stream.read(chunk)? > 0 {}
    Err(ErrorKind::UnexpectedEof.into())
}

fn source(stream: &mut TcpStream) -> io::Result<()> {
    while stream.write(&BODY)? > 0 {}
    Err(ErrorKind::WriteZero.into())
}
