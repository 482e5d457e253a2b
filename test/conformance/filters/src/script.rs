//! What a script can say.

use serde::Deserialize;

/// What the filter does with one exchange, step by step. Without a `run` or `reply` step, the
/// request goes on when the steps are over.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// How its `wait` steps wait.
    #[serde(default)]
    pub flavour: Flavour,
    /// The steps. Until `run` they are about the request, after it about the response.
    #[serde(default)]
    pub steps: Vec<Step>,
    /// What is done to a reply that was made elsewhere, to a request that never went on.
    #[serde(default)]
    pub replies: Vec<Step>,
    /// What is asked of the stream when the exchange is complete; the answers go to the log.
    #[serde(default)]
    pub complete: Vec<Ask>,
}

/// A question to the stream, or something done to it: `["attribute", "request.path"]`. See `ask.rs`.
pub type Ask = Vec<serde_json::Value>;

/// How a `wait` step waits.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Flavour {
    /// Not at all: the filter answers in the hook.
    #[default]
    AtOnce,
    /// On a timer of the Tokio runtime.
    Timer,
    /// On a task, and on a blocking thread: woken from foreign threads.
    Thread,
}

/// One step of a script.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Waits, as the flavour says.
    Wait,
    /// Waits for this many milliseconds, whatever the flavour.
    Sleep(u64),
    /// Counts that this step was reached.
    Mark,
    /// Waits until the gate of this name is open.
    Gate(String),
    /// Waits and is never woken.
    Forever,
    /// Lets the request go on, and waits for the response.
    Run,
    /// Lets the request go on, and gives up on its response as soon as the future would wait.
    RunAndDrop,
    /// Ends with a response of the filter's own.
    Reply(Reply),
    /// Panics.
    Panic,
    /// Panics in a task that the filter waits for.
    PanicInTask,
    /// Fails with this status and a message that must not reach the client.
    Error(u16),
    /// Calls the cluster `service`, and notes in `x-call` what came back: status and body, or the
    /// kind of the error.
    Call(Call),
    /// Calls the cluster `service` in a task of another thread; else as `Call`.
    CallShared(Call),
    /// Sends the request's body to the cluster `service`, and ends with the response.
    CallStreaming(Call),
    /// Calls the cluster `service`, and gives up after this many milliseconds.
    CallAndDrop(Call, u64),
    /// Asks the stream something, or does something to it. The answer is added to the response's
    /// `x-saw`.
    Ask(Ask),
    /// Resets the stream, with these details; as refused, if so.
    Reset {
        /// The details.
        details: String,
        /// So that the client may try again.
        #[serde(default)]
        refused: bool,
    },
    /// Drains the client's connection.
    DrainConnection,
    /// Starts the stream again, unless this is the header's second time here; the header is set.
    Recreate(String),
    /// Changes headers.
    Headers(Vec<Edit>),
    /// Changes the path.
    Path(String),
    /// Changes the method.
    Method(String),
    /// Changes the status.
    Status(u16),
    /// Puts a request header's value into a response header: `[request name, response name]`.
    /// Taken before `run`, set after it.
    Carry(String, String),
    /// Takes and forgets at least this many bytes, or all there are.
    Read(usize),
    /// Takes and forgets the whole body.
    Drain,
    /// Takes and forgets the whole body, and changes the trailers after it.
    DrainTrailers(Vec<Edit>),
    /// Waits for the whole body, up to a limit, and leaves it in place. Notes its length in
    /// `x-buffered`.
    Buffer(usize),
    /// Takes the whole body and puts another one made of it in its place.
    Whole(Whole),
    /// Replaces the body, unread.
    Body(String),
    /// Replaces the body by a stream of chunks, with a wait before each.
    BodyStream(Vec<String>),
    /// Changes the body chunk by chunk.
    Map(Mapping),
    /// Changes the trailers when they come.
    Trailers(Vec<Edit>),
    /// Replaces the body by what these steps write.
    Pipe(Vec<PipeStep>),
}

/// A call to a cluster.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// A cluster that is not there.
    #[serde(default)]
    pub unknown: bool,
    /// What it is asked: see the service in the harness.
    pub path: String,
    /// A body in one piece: then it is a POST.
    #[serde(default)]
    pub body: Option<String>,
    /// How long it may take.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// How large the answer may be.
    #[serde(default)]
    pub limit: Option<usize>,
}

/// A change of a header or trailer map.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Edit {
    /// Replaces all values.
    Set(String, String),
    /// Adds a value.
    Append(String, String),
    /// Removes all values.
    Remove(String),
    /// Panics.
    Panic,
}

/// A whole body, changed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Whole {
    /// The most bytes to take.
    pub limit: usize,
    /// What comes before.
    #[serde(default)]
    pub prefix: String,
    /// What comes after.
    #[serde(default)]
    pub suffix: String,
    /// Changes of the trailers after it.
    #[serde(default)]
    pub trailers: Vec<Edit>,
}

/// A change of a body that does not depend on where its chunks end.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mapping {
    /// Upper case.
    Upper,
    /// Each byte twice.
    Double,
    /// Without the bytes of this text.
    Without(String),
    /// Nothing is left.
    Drop,
    /// Panics at the first chunk.
    Panic,
}

/// A step of a pipe, which reads a body and writes another.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PipeStep {
    /// Writes a text.
    Write(String),
    /// Writes this many bytes, as `[text to repeat, bytes, bytes per write]`.
    WriteMany(String, usize, usize),
    /// Copies to the end, with a wait at each chunk.
    Copy,
    /// Copies at least this many bytes, with a wait at each chunk.
    CopySome(usize),
    /// Copies to the end, upper case, with a wait at each chunk.
    Upper,
    /// Reads and forgets to the end.
    Drain,
    /// Reads to the end into memory, then writes it all.
    Gather,
    /// Changes the trailers; what was not read goes.
    Trailers(Vec<Edit>),
    /// Ends with these trailers in place of those that came.
    SendTrailers(Vec<(String, String)>),
    /// As [`Step::Wait`].
    Wait,
    /// As [`Step::Mark`].
    Mark,
    /// As [`Step::Gate`].
    Gate(String),
    /// As [`Step::Forever`].
    Forever,
    /// As [`Step::Panic`].
    Panic,
    /// As [`Step::Error`].
    Error(u16),
}

/// A response of the filter's own. `$path` and `$method` in its body are the request's.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// Its headers; names may repeat.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// A body in one piece.
    #[serde(default)]
    pub body: Option<String>,
    /// A streamed body, with a wait before each chunk.
    #[serde(default)]
    pub chunks: Option<Vec<String>>,
    /// The body of the message at hand, through these steps.
    #[serde(default)]
    pub pipe: Option<Vec<PipeStep>>,
    /// Trailers.
    #[serde(default)]
    pub trailers: Vec<(String, String)>,
}
