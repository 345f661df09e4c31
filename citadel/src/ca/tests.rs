//! What is signed, what is not, and what the files of an authority may look like.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use mesh_identity::{
    TrustDomain,
    pki_types::{CertificateSigningRequestDer, pem::PemObject},
    testkit::TestCa,
};
use rcgen::{
    BasicConstraints, CertificateSigningRequestParams, DnType, PKCS_ECDSA_P384_SHA384, PKCS_ED25519,
    PKCS_RSA_SHA256, RsaKeySize,
};
use x509_parser::{extensions::GeneralName, parse_x509_certificate};

use super::{request::BadRequest, self_signed::SelfSigned, source::Source, *};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const DAY: Duration = Duration::from_secs(24 * 3600);

fn web() -> SpiffeId {
    WEB.parse().unwrap()
}

fn authority() -> (tempfile::TempDir, Authority) {
    let dir = tempfile::tempdir().unwrap();
    let authority = SelfSigned::new(dir.path(), &TrustDomain::default()).load(SystemTime::now()).unwrap();
    (dir, authority)
}

fn csr_pem(key: &KeyPair, edit: impl FnOnce(&mut CertificateParams)) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    edit(&mut params);
    params.serialize_request(key).unwrap().pem().unwrap()
}

/// I-02: whatever a request asks for, the certificate is the caller's and nothing more.
#[test]
fn what_a_request_asks_for_is_ignored() {
    let (_dir, authority) = authority();
    let evil = "spiffe://cluster.local/ns/kube-system/sa/admin";
    let name = |text: &str| Ia5String::try_from(text).unwrap();
    type Edit = Box<dyn FnOnce(&mut CertificateParams)>;
    let asks: Vec<(&str, Edit)> = vec![
        ("nothing", Box::new(|_| {})),
        ("another identity", Box::new(move |p| p.subject_alt_names = vec![SanType::URI(name(evil))])),
        (
            "further names",
            Box::new(move |p| {
                p.subject_alt_names = vec![
                    SanType::URI(name(WEB)),
                    SanType::DnsName(name("pilot.istio-system.svc")),
                    SanType::IpAddress("10.0.0.1".parse().unwrap()),
                    SanType::Rfc822Name(name("root@example.com")),
                ];
            }),
        ),
        ("a common name", Box::new(move |p| p.distinguished_name.push(DnType::CommonName, evil))),
        ("to be an authority", Box::new(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))),
        ("to sign", Box::new(|p| p.key_usages = vec![KeyUsagePurpose::KeyCertSign])),
        ("any use", Box::new(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any])),
    ];
    for (what, edit) in asks {
        let key = KeyPair::generate().unwrap();
        let public = request::public_key(&csr_pem(&key, edit)).unwrap_or_else(|e| panic!("{what}: {e}"));
        let now = SystemTime::now();
        let issued = authority.sign(&public, &web(), DAY, now).unwrap();
        let (_, cert) = parse_x509_certificate(&issued.leaf).unwrap();
        let san = cert.subject_alternative_name().unwrap().unwrap();
        assert_eq!(san.value.general_names, [GeneralName::URI(WEB)], "{what}");
        assert!(san.critical && !cert.is_ca(), "{what}");
        assert_eq!(cert.subject().iter().count(), 0, "{what}");
        let usage = cert.key_usage().unwrap().unwrap().value;
        assert!(usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign(), "{what}");
        let extended = cert.extended_key_usage().unwrap().unwrap().value;
        assert!(extended.server_auth && extended.client_auth && !extended.any, "{what}");
        assert_eq!(cert.public_key().raw, key.subject_public_key_info(), "{what}");
        let facts = LeafFacts::of("test", &issued.leaf).unwrap();
        let skew = now.duration_since(facts.not_before).unwrap();
        assert!(skew >= CLOCK_SKEW && skew < CLOCK_SKEW + Duration::from_secs(2), "{what}: {skew:?}");
    }
}

#[test]
fn requests_that_prove_nothing_are_refused() {
    let good = KeyPair::generate().unwrap();
    let pem = csr_pem(&good, |_| {});
    let body: String = pem.lines().filter(|l| !l.starts_with('-')).collect();
    let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
    let with = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut der = der.clone();
        edit(&mut der);
        rcgen_pem("CERTIFICATE REQUEST", &der)
    };
    let last = der.len() - 1;
    let trailing = with(&|der| der.push(0));
    for (what, pem, want) in [
        ("nothing", String::new(), "PEM"),
        ("text", "hello".into(), "PEM"),
        ("a certificate", TestCa::new("root").bundle().to_pem(), "PEM"),
        ("garbage in PEM", rcgen_pem("CERTIFICATE REQUEST", b"garbage"), "PKCS#10"),
        ("cut short", rcgen_pem("CERTIFICATE REQUEST", &der[..der.len() / 2]), "PKCS#10"),
        ("bytes after the end", trailing, "PKCS#10"),
        ("a signature of something else", with(&|der| der[last] ^= 1), "signature"),
        ("a megabyte", format!("-----BEGIN CERTIFICATE REQUEST-----\n{}", body.repeat(3000)), "bytes"),
    ] {
        let error = request::public_key(&pem).expect_err(what).to_string();
        assert!(error.starts_with("csr: ") && error.contains(want), "{what}: {error}");
    }
}

fn rcgen_pem(label: &str, der: &[u8]) -> String {
    use base64::{Engine, prelude::BASE64_STANDARD};
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", BASE64_STANDARD.encode(der))
}

#[test]
fn keys_of_all_usual_kinds_are_certified_and_weak_ones_are_not() {
    let (_dir, authority) = authority();
    let rsa = |size| KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, size).unwrap();
    for (what, key) in [
        ("P-256", KeyPair::generate().unwrap()),
        ("P-384", KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap()),
        ("Ed25519", KeyPair::generate_for(&PKCS_ED25519).unwrap()),
        ("RSA 2048", rsa(RsaKeySize::_2048)),
    ] {
        let public = request::public_key(&csr_pem(&key, |_| {})).unwrap_or_else(|e| panic!("{what}: {e}"));
        let issued = authority.sign(&public, &web(), DAY, SystemTime::now()).unwrap();
        let (_, cert) = parse_x509_certificate(&issued.leaf).unwrap();
        assert_eq!(cert.public_key().raw, key.subject_public_key_info(), "{what}");
    }
    // Made with `openssl req -new -newkey rsa:1024 -nodes -subj /`.
    let weak = include_str!("testdata/rsa1024.csr");
    assert!(matches!(request::public_key(weak), Err(BadRequest::Key(_))), "{:?}", request::public_key(weak));
}

#[test]
fn lifetimes_are_granted_within_bounds() {
    let lifetimes = Lifetimes::default();
    for (wish, seconds) in [
        (0, 86_400),
        (-5, 86_400),
        (i64::MIN, 86_400),
        (3600, 3600),
        (90 * 86_400, 90 * 86_400),
        (100 * 365 * 86_400, 90 * 86_400),
        (i64::MAX, 90 * 86_400),
    ] {
        assert_eq!(lifetimes.grant(wish).as_secs(), seconds, "{wish}");
    }
}

#[test]
fn serials_are_random_and_positive() {
    let (_dir, authority) = authority();
    let key = KeyPair::generate().unwrap();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..200 {
        let issued = authority.sign(&key, &web(), DAY, SystemTime::now()).unwrap();
        let (_, cert) = parse_x509_certificate(&issued.leaf).unwrap();
        assert!(cert.raw_serial()[0] < 0x80 && cert.raw_serial().len() == 16);
        assert!(seen.insert(issued.serial));
    }
}

#[test]
fn the_root_survives_a_restart_and_its_key_is_private() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    let own = SelfSigned::new(&path, &TrustDomain::default());
    let now = SystemTime::now();
    let first = own.load(now).unwrap();
    let mode = fs::metadata(path.join("ca-key.pem")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(own.load(now).unwrap().bundle(), first.bundle());
    let years = first.roots_not_after().duration_since(now).unwrap().as_secs() / (365 * 86_400);
    assert!((9..=10).contains(&years));
}

#[test]
fn an_old_root_is_renewed_with_its_key_so_that_old_certificates_still_verify() {
    let dir = tempfile::tempdir().unwrap();
    let own = SelfSigned::new(dir.path(), &TrustDomain::default());
    let start = SystemTime::now();
    let old = own.load(start).unwrap();
    let later = start + self_signed::ROOT_LIFETIME.mul_f64(0.79);
    assert_eq!(own.load(later).unwrap().bundle(), old.bundle(), "not before the last fifth");
    let late = start + self_signed::ROOT_LIFETIME.mul_f64(0.81);
    let leaf = old.credentials(&web(), DAY, late).unwrap();
    let new = own.load(late).unwrap();
    assert_ne!(new.bundle(), old.bundle());
    let domains = [TrustDomain::default()];
    for (what, bundle) in [("old root", old.bundle()), ("new root", new.bundle())] {
        verify::check_client(leaf.chain(), bundle, &domains, late).unwrap_or_else(|e| panic!("{what}: {e}"));
    }
    let young = new.credentials(&web(), DAY, late).unwrap();
    verify::check_client(young.chain(), old.bundle(), &domains, late)
        .expect("and new ones verify with the old root");
}

#[test]
fn a_lost_key_is_an_error_and_never_a_new_root() {
    let (dir, _) = authority();
    fs::remove_file(dir.path().join("ca-key.pem")).unwrap();
    let error =
        SelfSigned::new(dir.path(), &TrustDomain::default()).load(SystemTime::now()).unwrap_err().to_string();
    assert!(error.contains("ca-key.pem") && error.contains("restore"), "{error}");
}

/// Writes an operator's four files.
fn plug(dir: &Path, signing: &str, key: &PrivateKey, chain: &str, roots: &str) {
    for (name, content) in [
        ("ca-cert.pem", signing),
        ("ca-key.pem", &key.to_pem()),
        ("cert-chain.pem", chain),
        ("root-cert.pem", roots),
    ] {
        fs::write(dir.join(name), content).unwrap();
    }
}

/// An intermediate with its key, under a fresh root.
fn intermediate() -> (TestCa, CertificateDer<'static>, PrivateKey) {
    let root = TestCa::new("operator root");
    let credentials = root.issue_with(|params| {
        params.distinguished_name.push(DnType::CommonName, "intermediate");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.extended_key_usages = vec![];
    });
    (root, credentials.chain()[0].clone(), credentials.key().clone())
}

/// The wire's order: leaf, every intermediate by itself, roots last, each ending in a newline.
#[test]
fn a_plugged_in_intermediate_answers_in_the_order_of_the_wire() {
    let (root, signing, key) = intermediate();
    let other = TestCa::new("old operator root");
    let (signing_pem, root_pem) = (pem::encode(&signing), root.bundle().to_pem());
    let roots = format!("{root_pem}{}", other.bundle().to_pem());
    for (what, chain) in [
        ("only the signing certificate", signing_pem.clone()),
        ("with the root, as Istio's own script writes it", format!("{signing_pem}{root_pem}")),
        ("only the root", root_pem.clone()),
    ] {
        let dir = tempfile::tempdir().unwrap();
        plug(dir.path(), &signing_pem, &key, &chain, &roots);
        let authority = Source::Plugged(dir.path().into()).load(SystemTime::now()).unwrap();
        let issued = authority.sign(&KeyPair::generate().unwrap(), &web(), DAY, SystemTime::now()).unwrap();
        let answer = authority.answer(&issued);
        assert_eq!(answer[1..], [signing_pem.clone(), roots.clone()], "{what}");
        assert_eq!(answer[0], pem::encode(&issued.leaf), "{what}");
        assert!(answer.iter().all(|part| part.ends_with("-----\n")), "{what}");
    }
}

#[test]
fn a_certificate_never_outlives_its_issuer() {
    let (root, signing, key) = intermediate();
    let dir = tempfile::tempdir().unwrap();
    plug(dir.path(), &pem::encode(&signing), &key, "", "");
    fs::remove_file(dir.path().join("cert-chain.pem")).unwrap();
    fs::write(dir.path().join("root-cert.pem"), root.bundle().to_pem()).unwrap();
    let now = SystemTime::now();
    let authority = Source::Plugged(dir.path().into()).load(now).unwrap();
    let issued = authority.sign(&KeyPair::generate().unwrap(), &web(), 30 * DAY, now).unwrap();
    assert_eq!(issued.not_after, authority.not_after(), "an hour, as the intermediate");
    let after = authority.not_after() + Duration::from_secs(1);
    let late = authority.sign(&KeyPair::generate().unwrap(), &web(), DAY, after);
    assert!(matches!(late, Err(AuthorityError::Expired)));
}

#[test]
fn files_that_do_not_make_an_authority_are_named() {
    let (root, signing, key) = intermediate();
    let (other, leaf) = (TestCa::new("another"), root.issue(WEB));
    let signing_pem = pem::encode(&signing);
    let root_pem = root.bundle().to_pem();
    let leaf_pem = pem::encode(&leaf.chain()[0]);
    for (what, signing, key, roots, part) in [
        ("key of another", &signing_pem, leaf.key(), &root_pem, "does not belong"),
        ("a leaf", &leaf_pem, leaf.key(), &root_pem, "not a CA certificate"),
        (
            "roots of another",
            &signing_pem,
            &key,
            &other.bundle().to_pem(),
            "does not verify against its own roots",
        ),
        ("no roots", &signing_pem, &key, &String::new(), "root-cert.pem: no `BEGIN CERTIFICATE` block"),
        ("broken certificate", &"-----BEGIN CERTIFICATE-----\n?\n".into(), &key, &root_pem, "ca-cert.pem"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        plug(dir.path(), signing, key, signing, roots);
        let error = Source::Plugged(dir.path().into()).load(SystemTime::now()).expect_err(what).to_string();
        assert!(error.contains(part) && error.contains(&dir.path().display().to_string()), "{what}: {error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let error = Source::Plugged(dir.path().into()).load(SystemTime::now()).unwrap_err().to_string();
    assert!(error.contains("ca-key.pem"), "{error}");
}

#[test]
fn requests_also_parse_as_others_write_them() {
    let key = KeyPair::generate().unwrap();
    let pem = csr_pem(&key, |_| {});
    let windows = pem.replace('\n', "\r\n");
    let commented = format!("Subject: none\n{pem}");
    for text in [&windows, &commented] {
        assert!(request::public_key(text).is_ok());
    }
    assert!(CertificateSigningRequestParams::from_pem(&pem).is_ok());
}
