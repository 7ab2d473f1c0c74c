//! Special registers by name.

use crate::program::{Special, Src, Type};

/// The special register `name`, and its type.
pub(super) fn special(name: &str) -> Option<(Src, Type)> {
    let name = name.strip_prefix('%')?;
    let (special, ty) = match name.split_once('.') {
        Some((name, axis)) => (vector(name, axis)?, Type::U32),
        None => scalar(name)?,
    };
    Some((Src::Special(special), ty))
}

fn vector(name: &str, axis: &str) -> Option<Special> {
    let axis = match axis {
        "x" => 0,
        "y" => 1,
        "z" => 2,
        _ => return None,
    };
    Some(match name {
        "tid" => Special::Tid(axis),
        "ntid" => Special::NTid(axis),
        "ctaid" => Special::CtaId(axis),
        "nctaid" => Special::NCtaId(axis),
        "clusterid" => Special::ClusterId(axis),
        "nclusterid" => Special::NClusterId(axis),
        "cluster_ctaid" => Special::ClusterCtaId(axis),
        "cluster_nctaid" => Special::ClusterNCtaId(axis),
        _ => return None,
    })
}

fn scalar(name: &str) -> Option<(Special, Type)> {
    let word = |special| Some((special, Type::U32));
    match name {
        "laneid" => word(Special::LaneId),
        "warpid" => word(Special::WarpId),
        "nwarpid" => word(Special::NWarpId),
        "smid" => word(Special::SmId),
        "nsmid" => word(Special::NSmId),
        "gridid" => Some((Special::GridId, Type::U64)),
        "lanemask_eq" => word(Special::LaneMaskEq),
        "lanemask_le" => word(Special::LaneMaskLe),
        "lanemask_lt" => word(Special::LaneMaskLt),
        "lanemask_ge" => word(Special::LaneMaskGe),
        "lanemask_gt" => word(Special::LaneMaskGt),
        "clock" => word(Special::Clock),
        "clock_hi" => word(Special::ClockHi),
        "clock64" => Some((Special::Clock64, Type::U64)),
        "globaltimer" => Some((Special::GlobalTimer, Type::U64)),
        "globaltimer_lo" => word(Special::GlobalTimerLo),
        "globaltimer_hi" => word(Special::GlobalTimerHi),
        "dynamic_smem_size" => word(Special::DynamicSmemSize),
        "total_smem_size" => word(Special::TotalSmemSize),
        "cluster_ctarank" => word(Special::ClusterCtaRank),
        "cluster_nctarank" => word(Special::ClusterNCtaRank),
        "is_explicit_cluster" => Some((Special::IsExplicitCluster, Type::Pred)),
        _ => None,
    }
}
