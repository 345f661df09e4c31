//! Renewal in paused time, with a certificate authority that answers as told.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use mesh_runtime::{Readiness, drain};

use super::*;
use crate::testkit::TestCa;

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const HOUR: Duration = Duration::from_secs(3600);

#[derive(Clone, Copy)]
enum Say {
    Yes,
    Refuse,
    Unreachable,
    OtherIdentity,
    Nonsense,
}

/// Plays its script, then says yes for ever; remembers when it was asked.
struct Scripted {
    ca: TestCa,
    script: Mutex<VecDeque<Say>>,
    asked: Arc<Mutex<Vec<Duration>>>,
    start: Instant,
    clock: Clock,
}

impl Signer for Arc<Scripted> {
    async fn sign(&self, csr: String, ttl: Duration) -> Result<Vec<String>, SignError> {
        self.asked.lock().unwrap().push(self.start.elapsed());
        let now = (self.clock)();
        let say = self.script.lock().unwrap().pop_front().unwrap_or(Say::Yes);
        match say {
            Say::Yes => Ok(self.ca.sign(&csr, WEB, now, ttl)),
            Say::Refuse => Err(SignError::Refused("no".into())),
            Say::Unreachable => Err(SignError::Unreachable("down".into())),
            Say::OtherIdentity => Ok(self.ca.sign(&csr, "spiffe://cluster.local/ns/shop/sa/evil", now, ttl)),
            Say::Nonsense => Ok(vec!["not a certificate".into(), "neither".into()]),
        }
    }
}

struct Bench {
    ca: Arc<Scripted>,
    store: CertStore,
    readiness: Readiness,
    _trigger: drain::Trigger,
}

impl Bench {
    fn start(script: &[Say], root_file: Option<PathBuf>) -> Self {
        let (start, base) = (Instant::now(), SystemTime::now());
        let clock: Clock = Arc::new(move || base + start.elapsed());
        let ca = Arc::new(Scripted {
            ca: TestCa::new("root"),
            script: Mutex::new(script.iter().copied().collect()),
            asked: Arc::default(),
            start,
            clock: clock.clone(),
        });
        let store = CertStore::new(TrustDomain::default(), []);
        let readiness = Readiness::new();
        let (trigger, watch) = drain::new();
        let mut certifier = Certifier::new(ca.clone(), store.clone())
            .ttl(24 * HOUR)
            .expect(Some(WEB.parse().unwrap()))
            .ready(readiness.condition("certificate", "asked"))
            .clock(clock);
        if let Some(file) = root_file {
            certifier = certifier.watch_roots(file);
        }
        tokio::spawn(certifier.run(watch));
        Self { ca, store, readiness, _trigger: trigger }
    }

    fn serial(&self) -> Option<String> {
        self.store.current().map(|now| now.credentials.facts().serial.clone())
    }

    fn asked(&self) -> Vec<Duration> {
        self.ca.asked.lock().unwrap().clone()
    }
}

#[tokio::test(start_paused = true)]
async fn certificates_are_renewed_around_half_of_their_life() {
    let bench = Bench::start(&[], None);
    let first = bench.store.first().await.credentials.facts().serial.clone();
    tokio::time::sleep(11 * HOUR).await;
    assert_eq!(bench.serial().unwrap(), first, "not before 47.5 %");
    assert!(bench.readiness.is_ready());
    tokio::time::sleep(2 * HOUR).await;
    assert_ne!(bench.serial().unwrap(), first, "not after 52.5 %");
    assert_eq!(bench.asked().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn every_certificate_has_a_key_of_its_own() {
    let bench = Bench::start(&[], None);
    let first = bench.store.first().await.credentials.key().to_pem();
    tokio::time::sleep(13 * HOUR).await;
    assert_ne!(*first, *bench.store.first().await.credentials.key().to_pem());
}

#[tokio::test(start_paused = true)]
async fn a_valid_certificate_stays_while_renewal_fails() {
    let mut script = vec![Say::Yes];
    script.extend([Say::Refuse; 3000]);
    let bench = Bench::start(&script, None);
    let first = bench.store.first().await.credentials.facts().serial.clone();
    tokio::time::sleep(23 * HOUR).await;
    assert_eq!(bench.serial().unwrap(), first);
    assert!(bench.readiness.is_ready(), "still valid for an hour");
    tokio::time::sleep(2 * HOUR).await;
    assert_eq!(bench.serial().unwrap(), first, "even then nothing better is there");
    assert!(bench.readiness.missing()[0].1.contains("expired"), "{:?}", bench.readiness.missing());
}

#[tokio::test(start_paused = true)]
async fn an_authority_that_answers_is_asked_at_most_once_in_ten_seconds() {
    let script = [Say::Refuse, Say::OtherIdentity, Say::Nonsense, Say::Refuse, Say::Refuse];
    let bench = Bench::start(&script, None);
    bench.store.first().await;
    let asked = bench.asked();
    assert_eq!(asked.len(), script.len() + 1);
    for pair in asked.windows(2) {
        assert!(pair[1] - pair[0] >= Duration::from_secs(10), "{asked:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_authority_that_is_not_there_yet_is_tried_again_soon() {
    let bench = Bench::start(&[Say::Unreachable, Say::Unreachable, Say::Unreachable], None);
    bench.store.first().await;
    assert!(bench.asked()[3] <= Duration::from_secs(2), "{:?}", bench.asked());
}

#[tokio::test(start_paused = true)]
async fn a_certificate_for_somebody_else_or_nonsense_never_gets_in_force() {
    let bench = Bench::start(&[Say::Yes, Say::OtherIdentity, Say::Nonsense], None);
    let first = bench.store.first().await.credentials.facts().serial.clone();
    tokio::time::sleep(13 * HOUR).await;
    let now = bench.store.current().unwrap();
    assert_eq!(now.credentials.id().unwrap().as_str(), WEB);
    assert_ne!(now.credentials.facts().serial, first, "the fourth answer was good");
    assert_eq!(bench.asked().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_changed_root_file_renews_at_once() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "old roots").unwrap();
    let bench = Bench::start(&[], Some(file.path().into()));
    bench.store.first().await;
    tokio::time::sleep(HOUR).await;
    assert_eq!(bench.asked().len(), 1);
    std::fs::write(file.path(), "old roots and new roots").unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(bench.asked().len(), 2);
}
