//! `proxy capture`: the pod's TCP connections are led to the proxy, before the application starts.
//!
//! In: flags, with the names of Istio's annotations. Out: one nftables table, `inet crema`, put in place by one atomic batch over netlink.
//! Kept true: applying twice is applying once; UDP and the proxy's own connections are never touched. Not here: what the proxy does with
//! captured connections (`listen::accept`), what the rules are ([`rules`]), how they are written down ([`nft`]).

pub mod check;
pub mod netlink;
pub mod nft;
pub mod rules;

use rules::{Cidr, Cidrs, Plan, Ports};

/// The proxy's own ports, which clients reach as they are: status, readiness, statistics.
const OWN_PORTS: [u16; 3] = [15020, 15021, 15090];

/// Flags of `proxy capture`. Lists are separated by commas; `*` stands for all, nothing for none.
#[derive(Debug, Clone, clap::Args)]
pub struct CaptureArgs {
    /// Destinations whose connections go through the proxy, as ranges (10.0.0.0/8) or `*`
    #[arg(long, env = "INCLUDE_OUTBOUND_IP_RANGES", default_value = "*", value_name = "CIDRS")]
    pub include_outbound_cidrs: String,
    /// Destinations that are reached without the proxy
    #[arg(long, env = "EXCLUDE_OUTBOUND_IP_RANGES", default_value = "", value_name = "CIDRS")]
    pub exclude_outbound_cidrs: String,
    /// Ports of the pod whose clients reach the proxy first, or `*`
    #[arg(long, env = "INCLUDE_INBOUND_PORTS", default_value = "*", value_name = "PORTS")]
    pub include_inbound_ports: String,
    /// Ports of the pod that clients reach without the proxy; 15020, 15021 and 15090 always are
    #[arg(long, env = "EXCLUDE_INBOUND_PORTS", default_value = "", value_name = "PORTS")]
    pub exclude_inbound_ports: String,
    /// Destination ports that go through the proxy whatever the address
    #[arg(long, env = "INCLUDE_OUTBOUND_PORTS", default_value = "", value_name = "PORTS")]
    pub include_outbound_ports: String,
    /// Destination ports that are reached without the proxy
    #[arg(long, env = "EXCLUDE_OUTBOUND_PORTS", default_value = "", value_name = "PORTS")]
    pub exclude_outbound_ports: String,
    /// Interfaces that are left alone, both ways
    #[arg(long, env = "EXCLUDE_INTERFACES", default_value = "", value_name = "NAMES")]
    pub exclude_interfaces: String,
    /// Interfaces of virtual machines in the pod: what comes in there is outbound traffic
    #[arg(long, env = "KUBEVIRT_INTERFACES", default_value = "", value_name = "NAMES")]
    pub kubevirt_interfaces: String,
    /// User of the proxy; its connections are not captured
    #[arg(long, env = "PROXY_UID", default_value_t = 1337, value_name = "UID")]
    pub proxy_uid: u32,
    /// Group of the proxy; its connections are not captured
    #[arg(long, env = "PROXY_GID", default_value_t = 1337, value_name = "GID")]
    pub proxy_gid: u32,
    /// Port of the proxy that takes outbound connections
    #[arg(long, env = "OUTBOUND_PORT", default_value_t = 15001, value_name = "PORT")]
    pub outbound_port: u16,
    /// Port of the proxy that takes inbound connections
    #[arg(long, env = "INBOUND_PORT", default_value_t = 15006, value_name = "PORT")]
    pub inbound_port: u16,
    /// Afterwards prove with a connection inside the pod that capture works; fails if it does not
    #[arg(long, env = "CAPTURE_CHECK")]
    pub check: bool,
    /// Change nothing, only prove that capture works (for rules that something else has set)
    #[arg(long, conflicts_with_all = ["dry_run", "remove"])]
    pub check_only: bool,
    /// Print the rules instead of applying them
    #[arg(long, conflicts_with = "remove")]
    pub dry_run: bool,
    /// Remove the table
    #[arg(long)]
    pub remove: bool,
}

impl CaptureArgs {
    /// The flags understood.
    ///
    /// # Errors
    /// Names the flag and the item that cannot be meant.
    pub fn plan(&self) -> anyhow::Result<Plan> {
        let at = |flag: &'static str| move |why: String| anyhow::anyhow!("--{flag}: {why}");
        let mut exclude_inbound_ports =
            list(&self.exclude_inbound_ports, port).map_err(at("exclude-inbound-ports"))?;
        exclude_inbound_ports.extend(OWN_PORTS);
        exclude_inbound_ports.sort_unstable();
        exclude_inbound_ports.dedup();
        let include = self.include_outbound_cidrs.trim();
        let include_outbound = match include {
            "*" => Cidrs::All,
            _ => Cidrs::These(list(include, str::parse).map_err(at("include-outbound-cidrs"))?),
        };
        let include_inbound = match self.include_inbound_ports.trim() {
            "*" => Ports::All,
            ports => Ports::These(list(ports, port).map_err(at("include-inbound-ports"))?),
        };
        anyhow::ensure!(
            self.outbound_port != self.inbound_port,
            "--inbound-port: {} is --outbound-port too; the proxy needs two",
            self.inbound_port
        );
        Ok(Plan {
            include_outbound,
            exclude_outbound: list::<Cidr>(&self.exclude_outbound_cidrs, str::parse)
                .map_err(at("exclude-outbound-cidrs"))?,
            include_inbound,
            exclude_inbound_ports,
            include_outbound_ports: list(&self.include_outbound_ports, port)
                .map_err(at("include-outbound-ports"))?,
            exclude_outbound_ports: list(&self.exclude_outbound_ports, port)
                .map_err(at("exclude-outbound-ports"))?,
            exclude_interfaces: list(&self.exclude_interfaces, interface)
                .map_err(at("exclude-interfaces"))?,
            virtual_interfaces: list(&self.kubevirt_interfaces, interface)
                .map_err(at("kubevirt-interfaces"))?,
            uid: self.proxy_uid,
            gid: self.proxy_gid,
            outbound_port: self.outbound_port,
            inbound_port: self.inbound_port,
        })
    }
}

/// Does what the flags ask for. Dropping the future while it checks closes the sockets of the check.
///
/// # Errors
/// What could not be done, and what the operator can do about it.
pub async fn run(args: CaptureArgs) -> anyhow::Result<()> {
    let plan = args.plan()?;
    if args.dry_run {
        print!("{}", plan.table());
        return Ok(());
    }
    if args.remove {
        netlink::Netfilter::open()?.send(&nft::removal())?;
        println!("removed table inet {}", rules::TABLE);
        return Ok(());
    }
    if !args.check_only {
        let table = plan.table();
        netlink::Netfilter::open()?.send(&nft::replacement(&table))?;
        let six = netlink::add_inbound_source()?;
        let rules: usize = table.chains.iter().map(|chain| chain.rules.len()).sum();
        println!(
            "captured: table inet {} with {rules} rules, IPv6 {}",
            rules::TABLE,
            if six { "too" } else { "is not used here" }
        );
    }
    if args.check || args.check_only {
        match check::run(&plan).await? {
            check::Found::Proven(what) => println!("checked: {what}"),
            // The rules are in place, and without a way out there is nothing to capture yet.
            check::Found::NoWay(why) if args.check => println!("not checked: {why}"),
            check::Found::NoWay(why) => {
                anyhow::bail!("capture could not be checked ({why}): is the pod's network up?")
            }
        }
    }
    Ok(())
}

fn list<T>(text: &str, item: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    text.split(',').map(str::trim).filter(|text| !text.is_empty()).map(item).collect()
}

fn port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(format!("`{text}` is not a port (1 to 65535)")),
    }
}

/// A name that the kernel would take: at most 15 bytes.
fn interface(text: &str) -> Result<String, String> {
    if text.len() > 15 || text.contains(['/', ' ']) {
        return Err(format!("`{text}` is not the name of an interface (at most 15 letters)"));
    }
    Ok(text.to_owned())
}
