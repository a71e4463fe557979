//! The `Backend` object: which backend, and its options.

use serde::Serialize;
use serde_json::Value;

use super::fields::{Fields, Findings, Noted, Reader};
use crate::udp::DEFAULT_PORT;

/// Largest VXLAN network identifier (RFC 7348, section 5: 24 bits).
const VNI_MAX: u64 = (1 << 24) - 1;
/// Smallest MTU of an IPv4 link (RFC 791), plus what encapsulation takes.
const UNDERLAY_MTU_MIN: u64 = 68 + 50;
/// Largest MTU that an IPv4 packet can use.
const MTU_MAX: u64 = 65_535;

/// How packets travel between nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "Type")]
pub enum Backend {
    /// Encapsulated by a VXLAN device.
    #[serde(rename = "vxlan")]
    Vxlan(Vxlan),
    /// Routed on a shared link.
    #[serde(rename = "host-gw")]
    HostGw,
    /// Encapsulated in UDP by the agent itself. IPv4 only.
    #[serde(rename = "udp")]
    Udp(Udp),
    /// Encapsulated by an IPIP device. IPv4 only.
    #[serde(rename = "ipip")]
    Ipip(Ipip),
    /// Not at all: only leases are kept.
    #[serde(rename = "alloc")]
    Alloc,
    /// As commands of the operator bring about.
    #[serde(rename = "extension")]
    Extension(Extension),
}

/// Options of the vxlan backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Vxlan {
    /// VXLAN network identifier.
    #[serde(rename = "VNI")]
    pub vni: u32,
    /// UDP destination port; 0 is the kernel's default, 8472.
    #[serde(rename = "Port")]
    pub port: u16,
    /// MTU of the underlay in bytes; absent for that of the interface.
    #[serde(rename = "MTU", skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Whether the group policy extension is on.
    #[serde(rename = "GBP")]
    pub gbp: bool,
    /// Whether the device learns FDB entries.
    #[serde(rename = "Learning")]
    pub learning: bool,
    /// Whether peers on the same link are routed to without encapsulation.
    #[serde(rename = "DirectRouting")]
    pub direct_routing: bool,
}

/// Options of the udp backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Udp {
    /// UDP port, of all nodes.
    #[serde(rename = "Port")]
    pub port: u16,
}

/// Options of the ipip backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ipip {
    /// Whether peers on the same link are routed to without encapsulation.
    #[serde(rename = "DirectRouting")]
    pub direct_routing: bool,
}

/// Commands of the extension backend; an empty one is not run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Extension {
    /// Run before there is a lease; what it prints is published as the lease's data.
    pub pre_startup_command: String,
    /// Run once there is a lease.
    pub post_startup_command: String,
    /// Run for each other node's subnet.
    pub subnet_add_command: String,
    /// Run when another node's subnet is gone.
    pub subnet_remove_command: String,
}

impl Backend {
    /// `Backend.Type`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Vxlan(_) => "vxlan",
            Self::HostGw => "host-gw",
            Self::Udp(_) => "udp",
            Self::Ipip(_) => "ipip",
            Self::Alloc => "alloc",
            Self::Extension(_) => "extension",
        }
    }

    /// Whether it carries IPv6.
    pub const fn has_ipv6(&self) -> bool {
        !matches!(self, Self::Udp(_) | Self::Ipip(_))
    }
}

/// Reads the value of the field `Backend`.
pub(super) fn read(value: Option<Value>, findings: &mut Findings) -> Result<Backend, Noted> {
    const SUPPORTED: &str =
        "this agent has vxlan, host-gw, udp, ipip, alloc and extension; set it to one of them";
    let Some(value) = value else {
        // Whatever upstream's documentation says.
        findings.warnings.push(
            "Backend: absent, which means udp, the slowest: set it to {\"Type\":\"vxlan\"}".into(),
        );
        return Ok(Backend::Udp(Udp { port: DEFAULT_PORT }));
    };
    let fields: Fields = match serde_json::from_value(value.clone()) {
        Ok(fields) => fields,
        Err(_) => {
            return Err(findings.error(
                "Backend",
                value,
                "must be an object such as {\"Type\":\"vxlan\"}",
            ));
        }
    };
    let mut reader = Reader::new(fields, "Backend.", findings);
    let kind = reader.string("Type")?;
    let backend = match kind.as_deref().map(str::to_ascii_lowercase).as_deref() {
        Some("vxlan") => vxlan(&mut reader).map(Backend::Vxlan),
        Some("host-gw") => Ok(Backend::HostGw),
        Some("udp") => udp(&mut reader).map(Backend::Udp),
        Some("ipip") => flag(&mut reader, "DirectRouting")
            .map(|direct_routing| Backend::Ipip(Ipip { direct_routing })),
        Some("alloc") => Ok(Backend::Alloc),
        Some("extension") => extension(&mut reader).map(Backend::Extension),
        Some(other) => Err(reader.fail("Type", Value::from(other), SUPPORTED)),
        None => Err(reader.fail("Type", "absent", SUPPORTED)),
    };
    // Without a type it is unknown which fields are known.
    if backend.is_ok() {
        reader.finish();
    }
    backend
}

fn flag(reader: &mut Reader<'_>, name: &str) -> Result<bool, Noted> {
    Ok(reader.boolean(name)?.unwrap_or(false))
}

fn vxlan(reader: &mut Reader<'_>) -> Result<Vxlan, Noted> {
    // Of the Windows backend; configs are shared with such nodes.
    for name in ["Name", "MacPrefix"] {
        reader.get(name);
    }
    let vni = reader.integer("VNI", 0..=VNI_MAX);
    let port = reader.integer("Port", 0..=u16::MAX.into());
    let mtu = match reader.integer("MTU", 0..=MTU_MAX) {
        Ok(None | Some(0)) => Ok(None),
        Ok(Some(mtu)) if mtu < UNDERLAY_MTU_MIN => Err(reader.fail(
            "MTU",
            mtu,
            format!(
                "must be at least {UNDERLAY_MTU_MIN}: it is the underlay's, before encapsulation"
            ),
        )),
        Ok(Some(mtu)) => Ok(Some(mtu as u32)),
        Err(noted) => Err(noted),
    };
    let gbp = flag(reader, "GBP");
    let learning = flag(reader, "Learning");
    let direct_routing = flag(reader, "DirectRouting");
    Ok(Vxlan {
        vni: vni?.unwrap_or(1) as u32,
        port: port?.unwrap_or(0) as u16,
        mtu: mtu?,
        gbp: gbp?,
        learning: learning?,
        direct_routing: direct_routing?,
    })
}

fn udp(reader: &mut Reader<'_>) -> Result<Udp, Noted> {
    let port = reader.integer("Port", 1..=u16::MAX.into())?;
    Ok(Udp {
        port: port.map_or(DEFAULT_PORT, |port| port as u16),
    })
}

fn extension(reader: &mut Reader<'_>) -> Result<Extension, Noted> {
    // In upstream's samples, and never run.
    reader.get("ShutdownCommand");
    let mut command = |name| {
        let text = reader.string(name)?.unwrap_or_default();
        if let Some(syntax) = shell_syntax(&text) {
            reader.findings.warnings.push(format!(
                "Backend.{name}: {syntax} means nothing there: commands are run without a shell, by flanneld since 0.28.2 too; \
                 put it into a script and name that"
            ));
        }
        Ok(text)
    };
    let pre_startup = command("PreStartupCommand");
    let post_startup = command("PostStartupCommand");
    let subnet_add = command("SubnetAddCommand");
    let subnet_remove = command("SubnetRemoveCommand");
    Ok(Extension {
        pre_startup_command: pre_startup?,
        post_startup_command: post_startup?,
        subnet_add_command: subnet_add?,
        subnet_remove_command: subnet_remove?,
    })
}

/// What of a command only a shell would understand. The examples in upstream's documentation have it.
fn shell_syntax(text: &str) -> Option<&'static str> {
    const SYNTAX: [&str; 9] = ["\"", "'", "`", "$(", ";", "|", "&&", "<", ">"];
    SYNTAX.into_iter().find(|syntax| text.contains(syntax))
}
