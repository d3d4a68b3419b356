//! The connection to one server: TCP, TLS, who we are, and pipelines of commands.
//!
//! Promise: making one and asking on one end within `patience` each. Errors are in the operator's
//! words, begin with the server's address and hold no password.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use futures_util::future::select_ok;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, Pipeline, RedisConnectionInfo, RedisError, RedisResult,
    ServerErrorKind, Value,
};
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, InvalidMessage};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::Script;
use super::access::Access;

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    /// A name or an address, an IPv6 one without brackets.
    pub(super) host: String,
    pub(super) port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// A connection that many may ask on at the same time. It is closed with its last clone.
#[derive(Clone)]
pub(super) struct Connection {
    address: Address,
    patience: Duration,
    multiplexed: MultiplexedConnection,
    /// TLS, and no answer yet: with TLS 1.3 that is when a client learns that its certificate was refused.
    on_probation: Arc<AtomicBool>,
    _driver: Arc<AbortOnDropHandle<()>>,
}

/// The answers to commands, in their order.
pub(super) type Values = Vec<RedisResult<Value>>;

/// An error in words of ours.
pub(super) fn failure(words: impl fmt::Display) -> RedisError {
    io::Error::other(words.to_string()).into()
}

impl Connection {
    /// Connects, shows who we are, and chooses the database.
    pub(super) async fn new(
        address: &Address,
        access: &Arc<Access>,
        patience: Duration,
    ) -> RedisResult<Self> {
        let mut stage = "a connection";
        match timeout(patience, Self::by_stages(address, access, patience, &mut stage)).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(words)) => Err(failure(format_args!("{address}: {words}"))),
            Err(_) => Err(failure(format_args!("{address}: {stage} has taken longer than {patience:?}"))),
        }
    }

    async fn by_stages(
        address: &Address,
        access: &Arc<Access>,
        patience: Duration,
        stage: &mut &'static str,
    ) -> Result<Self, String> {
        let files = access.clone();
        let loaded = tokio::task::spawn_blocking(move || files.load());
        let loaded = loaded.await.map_err(|error| error.to_string())?.map_err(|fault| fault.to_string())?;
        let stream = dial(address).await.map_err(|error| error.to_string())?;
        let connection = match loaded.tls {
            None => Self::over(stream, address, patience, false).await?,
            Some(config) => {
                *stage = "the TLS handshake";
                let name = access.server_name().unwrap_or(&address.host).to_owned();
                let name = ServerName::try_from(name).map_err(|_| "the host is no name for a certificate")?;
                let stream = TlsConnector::from(config).connect(name, stream).await;
                let stream = stream.map_err(|error| explain(&error, access))?;
                Self::over(stream, address, patience, true).await?
            }
        };
        *stage = "an answer to AUTH";
        connection.introduce(access, loaded.password).await?;
        Ok(connection)
    }

    /// Nothing is sent yet: what the client library would send is not for every user.
    async fn over<S>(stream: S, address: &Address, patience: Duration, tls: bool) -> Result<Self, String>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let info = RedisConnectionInfo::default().set_skip_set_lib_name();
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(patience));
        let made = MultiplexedConnection::new_with_config(&info, stream, config).await;
        let (multiplexed, driver) = made.map_err(|error| error.to_string())?;
        let driver = Arc::new(AbortOnDropHandle::new(tokio::spawn(driver)));
        let on_probation = Arc::new(AtomicBool::new(tls));
        Ok(Self { address: address.clone(), patience, multiplexed, on_probation, _driver: driver })
    }

    async fn introduce(&self, access: &Access, password: Option<String>) -> Result<(), String> {
        let mut pipeline = Pipeline::new();
        if let Some(password) = &password {
            pipeline.cmd("AUTH");
            if let Some(user) = &access.user {
                pipeline.arg(user);
            }
            pipeline.arg(password);
        }
        if access.database != 0 {
            pipeline.cmd("SELECT").arg(access.database);
        }
        if pipeline.is_empty() {
            return Ok(());
        }
        let mut answers = self.send(&pipeline).await.map_err(|error| error.to_string())?.into_iter();
        if password.is_some()
            && let Some(Err(error)) = answers.next()
        {
            let who = match &access.user {
                Some(user) => format!("the user `{user}` with this password"),
                None => "the password".into(),
            };
            return Err(format!("it does not accept {who}: {}", said(&error)));
        }
        match answers.next() {
            Some(Err(error)) => {
                Err(format!("it does not give database {}: {}", access.database, said(&error)))
            }
            _ => Ok(()),
        }
    }

    /// Sends the commands as one. If the server lacks the script, loads it and repeats those that
    /// missed it, once. With `asking`, of a slot that the server is only being given.
    pub(super) async fn ask(&self, commands: &[&Cmd], asking: bool, script: &Script) -> RedisResult<Values> {
        let mut answers = self.run(commands, asking, None).await?;
        let missed: Vec<usize> = (0..answers.len()).filter(|i| lacks_script(&answers[*i])).collect();
        if !missed.is_empty() {
            let commands: Vec<&Cmd> = missed.iter().map(|i| commands[*i]).collect();
            let again = self.run(&commands, asking, Some(script)).await?;
            for (i, answer) in missed.into_iter().zip(again) {
                answers[i] = answer;
            }
        }
        Ok(answers)
    }

    /// One round trip; the script is loaded on the way to the commands.
    async fn run(&self, commands: &[&Cmd], asking: bool, load: Option<&Script>) -> RedisResult<Values> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = Pipeline::with_capacity(commands.len() + 1);
        if let Some(script) = load {
            pipeline.cmd("SCRIPT").arg("LOAD").arg(script.code);
        }
        for command in commands {
            if asking {
                pipeline.cmd("ASKING");
            }
            pipeline.add_command((*command).clone());
        }
        let sent = self.send(&pipeline).await;
        let mut answers = sent.map_err(|words| self.failure(words))?.into_iter();
        let loaded = load.and_then(|_| answers.next());
        let answers = answers.skip(usize::from(asking)).step_by(1 + usize::from(asking));
        Ok(match loaded {
            // Why it is still missing says more than that it is.
            Some(Err(refused)) => answers
                .map(|answer| if lacks_script(&answer) { Err(refused.clone()) } else { answer })
                .collect(),
            _ => answers.collect(),
        })
    }

    async fn send(&self, pipeline: &Pipeline) -> Result<Values, String> {
        let answers = self.multiplexed.clone().send_packed_commands(pipeline, 0, pipeline.len()).await;
        match answers {
            Ok(values) => {
                self.on_probation.store(false, Relaxed);
                Ok(values.into_iter().map(Value::extract_error).collect())
            }
            Err(error) if error.is_timeout() => {
                Err(format!("an answer has taken longer than {:?}", self.patience))
            }
            Err(error) => Err(match by_alert(&error) {
                Some(words) => words,
                // The alert is lost where the server has closed before all that we sent was there.
                None if error.is_connection_dropped() && self.on_probation.load(Relaxed) => {
                    "it closes after the TLS handshake; it may want another certificate of ours \
                     (`redis.tls.certificate`)"
                        .into()
                }
                None if error.is_connection_dropped() => "it has closed the connection".into(),
                None => error.to_string(),
            }),
        }
    }

    /// What a command that is none of the script's answers.
    pub(super) async fn query(&self, command: Cmd) -> RedisResult<Value> {
        let mut pipeline = Pipeline::with_capacity(1);
        pipeline.add_command(command);
        let answer = self.send(&pipeline).await.map(|mut answers| answers.pop());
        match answer {
            Ok(Some(Ok(value))) => Ok(value),
            Ok(Some(Err(error))) => Err(self.failure(said(&error))),
            Ok(None) => Err(self.failure("no answer")),
            Err(words) => Err(self.failure(words)),
        }
    }

    /// An error of this server.
    pub(super) fn failure(&self, words: impl fmt::Display) -> RedisError {
        failure(format_args!("{}: {words}", self.address))
    }
}

fn lacks_script(answer: &RedisResult<Value>) -> bool {
    let kind = answer.as_ref().err().map(RedisError::kind);
    kind == Some(ErrorKind::Server(ServerErrorKind::NoScript))
}

/// What a server said in its error, as it said it.
pub(super) fn said(error: &RedisError) -> String {
    match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        (Some(code), None) => code.into(),
        _ => error.to_string(),
    }
}

/// All addresses of a name at once, so that one that does not answer is in nobody's way.
async fn dial(address: &Address) -> io::Result<TcpStream> {
    #[expect(clippy::disallowed_methods, reason = "a connect is rare, and asks anew: no TTL matters")]
    let found = tokio::net::lookup_host((address.host.as_str(), address.port)).await?;
    let dials: Vec<_> = found.map(|to| Box::pin(TcpStream::connect(to))).collect();
    if dials.is_empty() {
        return Err(io::Error::other("the name has no address"));
    }
    let (stream, _) = select_ok(dials).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A failed handshake, in the operator's terms.
fn explain(error: &io::Error, access: &Access) -> String {
    use rustls::Error as Tls;
    if let Some(words) = by_alert(error) {
        return words;
    }
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Tls>()) {
        Some(Tls::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            format!("its certificate leads to no root of {}", access.authority())
        }
        Some(Tls::InvalidCertificate(error)) => format!("its certificate is refused: {error}"),
        Some(Tls::InvalidMessage(InvalidMessage::InvalidContentType)) => "it answers without TLS".into(),
        _ if error.kind() == io::ErrorKind::UnexpectedEof => "it closes during the TLS handshake".into(),
        _ => format!("the TLS handshake failed: {error}"),
    }
}

/// What the server's TLS has said, if that is the error.
fn by_alert(error: &(dyn Error + 'static)) -> Option<String> {
    use AlertDescription as Alert;
    let mut next = Some(error);
    let alert = loop {
        let error = next?;
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        match inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::AlertReceived(alert)) => break *alert,
            _ => next = error.source(),
        }
    };
    Some(match alert {
        Alert::CertificateRequired => "it wants a certificate of ours (`redis.tls.certificate`)".into(),
        Alert::BadCertificate
        | Alert::UnsupportedCertificate
        | Alert::CertificateRevoked
        | Alert::CertificateExpired
        | Alert::CertificateUnknown
        | Alert::UnknownCA
        | Alert::AccessDenied
        | Alert::DecryptError => {
            format!("it refuses our certificate (`redis.tls.certificate`): alert {alert:?}")
        }
        // How OpenSSL says with TLS 1.2 that it wants one.
        Alert::HandshakeFailure => {
            "it ends the TLS handshake; it may want a certificate of ours (`redis.tls.certificate`)".into()
        }
        _ => format!("it ends the TLS handshake: alert {alert:?}"),
    })
}
