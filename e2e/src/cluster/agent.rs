//! Calls from inside pods: `kubectl exec` keeps one agent per workload running, and calls go through it.
//!
//! In: calls, loads. Out: replies as the pod saw them. Kept true: calls share one agent and run at once; an agent whose pod is gone is
//! replaced by the next call. Not here: the agent itself (`espresso_shop::agent`).

use std::{
    collections::HashMap,
    pin::Pin,
    process::Stdio,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, bail};
use espresso_shop::agent::{Answer, CallSpec, LoadReport, LoadSpec, Question, What};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::Child,
    sync::{mpsc, oneshot},
};

use super::kubectl::Kubectl;
use crate::http::{Call, Reply, Via};

/// Where calls come from: any pod of a workload.
#[derive(Debug)]
pub struct Agent {
    kubectl: Kubectl,
    namespace: String,
    /// `deploy/NAME` or `pod/NAME`.
    target: String,
    next: AtomicU64,
    session: tokio::sync::Mutex<Option<Arc<Session>>>,
}

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Answer>>>>;

#[derive(Debug)]
struct Session {
    lines: mpsc::Sender<String>,
    waiting: Waiting,
    over: Arc<AtomicBool>,
    _child: Child,
}

impl Agent {
    /// An agent in the application's container of `target`; it starts with the first call.
    #[must_use]
    pub fn new(kubectl: Kubectl, namespace: &str, target: &str) -> Arc<Self> {
        Arc::new(Self {
            kubectl,
            namespace: namespace.to_owned(),
            target: target.to_owned(),
            next: AtomicU64::new(1),
            session: tokio::sync::Mutex::default(),
        })
    }

    /// A GET of `url` from there.
    #[must_use]
    pub fn get(self: &Arc<Self>, url: &str) -> Call {
        Call { via: Some(Arc::clone(self) as Arc<dyn Via>), ..Call::get(url) }
    }

    /// A load from there.
    ///
    /// # Errors
    /// When the pod cannot be reached.
    pub async fn load(&self, spec: LoadSpec) -> anyhow::Result<LoadReport> {
        let patience = Duration::from_secs(spec.seconds + 60);
        self.ask(What::Load(spec), patience).await?.load.context("an answer without a report")
    }

    async fn ask(&self, what: What, patience: Duration) -> anyhow::Result<Answer> {
        let session = self.session().await?;
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (tell, told) = oneshot::channel();
        let waiting = || session.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting().insert(id, tell);
        let line = serde_json::to_string(&Question { id, what })? + "\n";
        let gone = || format!("the agent in {} of {} is gone", self.target, self.namespace);
        session.lines.send(line).await.ok().with_context(gone)?;
        let answer = tokio::time::timeout(patience, told).await;
        waiting().remove(&id);
        let answer = answer.with_context(|| format!("no answer from {} within {patience:?}", self.target))?;
        let answer = answer.ok().with_context(gone)?;
        if let Some(error) = answer.error {
            bail!("from {}: {error}", self.target);
        }
        Ok(answer)
    }

    async fn session(&self) -> anyhow::Result<Arc<Session>> {
        let mut current = self.session.lock().await;
        if let Some(session) = current.as_ref().filter(|s| !s.over.load(Ordering::Relaxed)) {
            return Ok(Arc::clone(session));
        }
        let session = Arc::new(self.start()?);
        *current = Some(Arc::clone(&session));
        Ok(session)
    }

    fn start(&self) -> anyhow::Result<Session> {
        let args = ["-n", &self.namespace, "exec", "-i", "-q", &self.target, "--"];
        let mut command = self.kubectl.command(&args);
        command.args(["/espresso-shop", "agent"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().context("kubectl does not start")?;
        let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("kubectl without pipes");
        };
        let (lines, mut queue) = mpsc::channel::<String>(64);
        let waiting = Waiting::default();
        let over = Arc::new(AtomicBool::new(false));
        tokio::spawn(async move {
            while let Some(line) = queue.recv().await {
                if stdin.write_all(line.as_bytes()).await.is_err() {
                    break;
                }
            }
        });
        let (answered, ended) = (Arc::clone(&waiting), Arc::clone(&over));
        tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let Ok(answer) = serde_json::from_str::<Answer>(&line) else { continue };
                let teller = answered.lock().unwrap_or_else(PoisonError::into_inner).remove(&answer.id);
                if let Some(teller) = teller {
                    // Whoever asked has given up when this fails.
                    let _late = teller.send(answer);
                }
            }
            ended.store(true, Ordering::Relaxed);
            // Dropping the senders tells everybody who waits.
            answered.lock().unwrap_or_else(PoisonError::into_inner).clear();
        });
        Ok(Session { lines, waiting, over, _child: child })
    }
}

impl Via for Agent {
    fn send<'a>(
        &'a self,
        call: &'a Call,
    ) -> Pin<Box<dyn Future<Output = anyhow::Result<Reply>> + Send + 'a>> {
        Box::pin(async move {
            let patience = call.patience + Duration::from_secs(15);
            let answer = self.ask(What::Call(CallSpec::of(call)), patience).await?;
            answer.reply.context("an answer without a reply")?.reply()
        })
    }
}
