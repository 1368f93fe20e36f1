//! What each command does. Parsing is `cli`, deciding is in the pure modules and in `ukai_meta`;
//! here the two meet the metadata store and the nodes.

mod bench;
mod cluster;
mod drain;
mod follow;
mod job;
mod location;
mod node;
mod node_forget;
mod ping;
mod plan;
mod plan_json;
mod plan_score;
mod prepare_move;
mod probe;
mod relocate;
mod stats;
mod synchronize;
mod transfer;
mod volume_create;
mod volume_delete;
mod volume_heat;
mod volume_map;
mod volume_show;
mod whatif;

use crate::cli::{Cli, ClusterVerb, NodeVerb, Noun, VolumeVerb};
use crate::context::Context;
use crate::error::Result;
use crate::scrub;

/// Does what the command line says.
pub(crate) fn run(cli: Cli) -> Result<()> {
    if matches!(cli.noun, Noun::Bench(_)) {
        bench::prepare();
    }
    let create = matches!(cli.noun, Noun::Cluster(ClusterVerb::Init));
    let context = Context::open(cli.meta, cli.json, create)?;
    let context = &context;
    match cli.noun {
        Noun::Cluster(ClusterVerb::Init) => cluster::init(context),
        Noun::Cluster(ClusterVerb::Show) => cluster::show(context),
        Noun::Volume(verb) => match verb {
            VolumeVerb::Create(args) => volume_create::create(context, &args),
            VolumeVerb::List => volume_show::list(context),
            VolumeVerb::Show(name) => volume_show::show(context, &name.volume),
            VolumeVerb::Resize(args) => volume_create::resize(context, &args),
            VolumeVerb::Delete(args) => volume_delete::delete(context, &args),
            VolumeVerb::Map(args) => volume_map::map(context, &args),
            VolumeVerb::Heat(args) => volume_heat::heat(context, &args),
            VolumeVerb::AddLocation(args) => location::add(context, &args),
            VolumeVerb::RemoveLocation(args) => location::remove(context, &args),
            VolumeVerb::Synchronize(args) => synchronize::synchronize(context, &args),
            VolumeVerb::Import(args) => transfer::import(context, &args),
            VolumeVerb::Export(args) => transfer::export(context, &args),
        },
        Noun::Node(verb) => match verb {
            NodeVerb::List => node::list(context),
            NodeVerb::Show(name) => node::show(context, &name.node),
            NodeVerb::DrainCheck(name) => drain::check(context, &name.node),
            NodeVerb::Drain(name) => drain::set(context, &name.node, true),
            NodeVerb::Undrain(name) => drain::set(context, &name.node, false),
            NodeVerb::Forget(args) => node_forget::forget(context, &args),
            NodeVerb::Ping(args) => ping::ping(context, &args),
        },
        Noun::Scrub(args) => scrub::scrub(context, &args),
        Noun::Relocate(args) if args.follow => follow::follow(context, &args),
        Noun::Relocate(args) => relocate::relocate(context, &args),
        Noun::PrepareMove(args) => prepare_move::prepare_move(context, &args),
        Noun::Job(verb) => job::job(context, &verb),
        Noun::Probe(args) => probe::probe(context, &args),
        Noun::Stats(name) => stats::stats(context, &name.volume),
        Noun::Plan(args) if args.score => plan_score::score(context, &args.name.volume),
        Noun::Plan(args) => plan::plan(context, &args),
        Noun::Bench(args) => bench::bench(context, &args),
        Noun::Whatif(args) => whatif::whatif(context, &args.lose),
    }
}
