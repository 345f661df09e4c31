//! Certificate authorities and identities for tests, here and (feature `testkit`) in other crates.
//!
//! In: names. Out: real certificates, chains and stores; a [`crate::Verified`] that has really been verified.
//! Kept true: nothing here weakens a check; the proof comes out of the same verifier as in production.
//! Not here: anything a running mesh uses.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, string::Ia5String,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::{
    bundle::TrustBundle,
    credentials::{Credentials, PrivateKey},
    pem,
    spiffe::{SpiffeId, TrustDomain},
    store::CertStore,
    tls::{Peer, verify},
    workload::{SignError, Signer},
};

/// A certificate authority made on the spot.
pub struct TestCa {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

impl TestCa {
    /// A new root of this common name.
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("a P-256 key can be made");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = params.self_signed(&key).expect("a root can sign itself").der().clone();
        Self { issuer: Issuer::new(params, key), root }
    }

    /// Its root as a bundle.
    pub fn bundle(&self) -> TrustBundle {
        TrustBundle::new("test root", vec![self.root.clone()]).expect("the test root is an anchor")
    }

    /// Its root certificate.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// A workload certificate for an identity, valid for an hour.
    pub fn issue(&self, id: &str) -> Credentials {
        self.issue_with(|params| params.subject_alt_names = vec![uri(id)])
    }

    /// A certificate with parameters of one's own; the start is a workload certificate without names.
    pub fn issue_with(&self, edit: impl FnOnce(&mut CertificateParams)) -> Credentials {
        let key = KeyPair::generate().expect("a P-256 key can be made");
        let mut params = leaf_params();
        edit(&mut params);
        let cert = params.signed_by(&key, &self.issuer).expect("the test authority can sign");
        let key = PrivateKey::from_der(PrivatePkcs8KeyDer::from(key.serialize_der()).into());
        Credentials::unmatched(vec![cert.der().clone()], key)
    }

    /// An intermediate authority below this one, and its certificate.
    pub fn intermediate(
        &self,
        name: &str,
        edit: impl FnOnce(&mut CertificateParams),
    ) -> (Self, CertificateDer<'static>) {
        let key = KeyPair::generate().expect("a P-256 key can be made");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        edit(&mut params);
        let cert = params.signed_by(&key, &self.issuer).expect("the test authority can sign").der().clone();
        (Self { issuer: Issuer::new(params, key), root: self.root.clone() }, cert)
    }

    /// A store that holds a certificate of this identity already.
    pub fn store(&self, id: &str) -> CertStore {
        let domain = id.parse::<SpiffeId>().expect("a mesh identity").trust_domain().clone();
        let store = CertStore::new(domain, []);
        store.publish(self.issue(id), self.bundle());
        store
    }

    /// A verified peer of this identity.
    pub fn peer(&self, id: &str) -> Peer {
        let credentials = self.issue(id);
        let domain = credentials.id().expect("a mesh identity").trust_domain().clone();
        verify::check_client(credentials.chain(), &self.bundle(), &[domain], SystemTime::now())
            .expect("just issued")
    }

    /// Signs the public key of a request for an identity, valid from `from` for `ttl`.
    pub fn sign(&self, csr_pem: &str, id: &str, from: SystemTime, ttl: Duration) -> Vec<String> {
        let csr = CertificateSigningRequestParams::from_pem(csr_pem).expect("a request");
        let mut params = leaf_params();
        params.subject_alt_names = vec![uri(id)];
        params.not_before = from.into();
        params.not_after = (from + ttl).into();
        let cert = params.signed_by(&csr.public_key, &self.issuer).expect("the test authority can sign");
        vec![pem::encode(cert.der()), pem::encode(&self.root)]
    }
}

/// A signer that answers for one identity with certificates of this authority.
pub struct TestSigner {
    /// Who signs.
    pub ca: TestCa,
    /// For whom.
    pub id: String,
}

impl Signer for TestSigner {
    async fn sign(&self, csr_pem: String, ttl: Duration) -> Result<Vec<String>, SignError> {
        Ok(self.ca.sign(&csr_pem, &self.id, SystemTime::now(), ttl))
    }
}

/// A verified peer of an identity, from an authority of its own: for tests of policy.
pub fn peer(id: &str) -> Peer {
    TestCa::new("test root").peer(id)
}

/// `cluster.local`.
pub fn domain() -> TrustDomain {
    TrustDomain::default()
}

/// A URI name.
pub fn uri(text: &str) -> SanType {
    SanType::URI(Ia5String::try_from(text).expect("ASCII"))
}

fn leaf_params() -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = (now - Duration::from_secs(120)).into();
    params.not_after = (now + Duration::from_secs(3600)).into();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params
}
