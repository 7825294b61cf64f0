#include "plan/rebalance.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "core/error.hpp"
#include "core/units.hpp"
#include "plan/expert_slabs.hpp"
#include "plan/plan_hash.hpp"

namespace weightcast {

namespace {

/// Rounds of which a rank has staging for the buckets: while one is written the next one travels.
constexpr std::int64_t kRoundsUnderWay = 2;
/// So many rounds are made where each then still has this much on its busiest route, so that they overlap.
constexpr std::int64_t kWantedRounds = 16;
constexpr std::int64_t kWantedBucketBytes = std::int64_t{4} << 20;

/// From which rank to which.
struct Way {
  std::int64_t root = 0;
  std::int64_t destination = 0;

  friend auto operator<=>(const Way& a, const Way& b) = default;
};

/// A slab that goes from one rank to another, which puts it into one or several of its slots.
struct SlabMove {
  std::uint32_t tensor = 0;
  std::size_t way = 0;  ///< of the layer's
};

/// All slabs of one parameter that move.
struct Unit {
  std::int64_t rows = 0;  ///< of each slab
  std::int64_t cols = 0;
  std::int64_t row_bytes = 0;
  std::vector<SlabMove> moves;
  std::vector<std::int64_t> slabs_of_way;  ///< by way of the layer
};

struct Layer {
  std::vector<Way> ways;
  std::vector<Unit> units;
};

/// Slabs as tensors, and parameters that these feed.
class SlabFamily final : public Family {
 public:
  SlabFamily(Catalog catalog, std::vector<std::vector<Parameter>> parameters)
      : catalog_(std::move(catalog)), parameters_(std::move(parameters)) {}

  const Catalog& catalog() const override { return catalog_; }
  std::vector<Parameter> parameters(const EngineLayout& /*layout*/, const EngineRank& rank) const override {
    return parameters_.at(static_cast<std::size_t>(rank.tp));
  }
  std::optional<StoredForm> other_stored_form(const Tensor& /*tensor*/) const override {
    return std::nullopt;
  }
  bool may_ignore(std::string_view /*stored_name*/) const override { return false; }

 private:
  Catalog catalog_;
  std::vector<std::vector<Parameter>> parameters_;  ///< by rank
};

/// A slab as a matrix whose rows are so short that little staging takes some of each slab, and whose columns
/// share keys of digests.
Shape slab_shape(std::int64_t elements, std::int64_t element_bytes) {
  constexpr std::int64_t kMostRowBytes = 2048;
  std::int64_t cols = std::min(elements, kMostRowBytes / element_bytes);
  while (elements % cols != 0) --cols;
  return {elements / cols, cols};
}

template <typename Value>
auto& at(Value& values, std::int64_t index) {
  return values[static_cast<std::size_t>(index)];
}

std::string sizes_text(const ExpertMap& map) {
  return fmt::format("{} layers, {} experts, {} slots and {} ranks", map.layers(), map.experts, map.slots,
                     map.ep);
}

/// Finds what moves, and from where.
class Mover {
 public:
  Mover(const Family& family, const EngineLayout& layout, const ExpertMap& from, const ExpertMap& to,
        const std::vector<std::int64_t>& hosts)
      : layout_(layout), from_(from), to_(to), hosts_(hosts), slots_(from.slots / from.ep) {
    for (std::int64_t rank = 0; rank < layout.replica_ranks(); ++rank) {
      slabs_.push_back(rank_slabs(family, layout, from, to, engine_rank(layout, rank)));
    }
    for (const RankSlabs& rank : slabs_) {
      auto& names = names_.emplace_back();
      for (const SlabParameter& slab : rank.slabs)
        names[slab.layer][rank.parameters[slab.parameter].name] = &slab;
    }
    sent_.resize(static_cast<std::size_t>(layout.ranks()));
    held_.resize(static_cast<std::size_t>(layout.ranks()));
    fed_.resize(static_cast<std::size_t>(layout.ranks()));
  }

  std::vector<Layer> layers() {
    std::vector<Layer> layers;
    for (std::int64_t layer = 0; layer < from_.layers(); ++layer) {
      // A layer without experts may have no slots.
      if (at(from_.placement.experts_of_slots, layer).empty()) continue;
      begin_layer(layer);
      for (std::int64_t rank = 0; rank < layout_.ranks(); ++rank) add_rank(layer, rank);
      if (units_.empty()) continue;
      Layer& made = layers.emplace_back(Layer{std::move(ways_), {}});
      for (auto& [name, unit] : units_) {
        unit.slabs_of_way.resize(made.ways.size());
        for (const SlabMove& move : unit.moves) ++unit.slabs_of_way[move.way];
        made.units.push_back(std::move(unit));
      }
    }
    return layers;
  }

  const RebalanceFigures& figures() const { return figures_; }
  Catalog take_catalog() { return std::move(catalog_); }
  const Catalog& catalog() const { return catalog_; }

  std::vector<HeldWeights> held() const {
    std::vector<HeldWeights> all;
    for (const auto& boxes : held_) all.emplace_back(boxes, catalog_.size());
    return all;
  }

  /// Of every rank: with the slabs that it gets as parts, and all else as untouched.
  std::vector<std::vector<Parameter>> parameters() {
    std::vector<std::vector<Parameter>> all;
    for (std::int64_t rank = 0; rank < layout_.ranks(); ++rank) {
      std::vector<Parameter>& own = all.emplace_back(slabs_of(rank).parameters);
      for (const auto& [place, tensor] : at(fed_, rank)) {
        const auto [number, slot] = place;
        own[number].parts.push_back(
            {tensor, Box::whole(catalog_[tensor].shape), slot * catalog_[tensor].bytes(), row_bytes(tensor)});
      }
      for (Parameter& parameter : own) leave_the_rest(parameter);
    }
    return all;
  }

 private:
  static void leave_the_rest(Parameter& parameter) {
    std::int64_t end = 0;
    const auto leave = [&](std::int64_t until) {
      if (until > end) parameter.untouched.push_back({end, until - end});
    };
    for (const Part& part : parameter.parts) {  // ascending
      leave(part.offset);
      end = part.offset + part.box.rows * part.pitch;
    }
    leave(parameter.bytes());
  }

  std::int64_t row_bytes(std::uint32_t tensor) const {
    return catalog_[tensor].shape.cols() * dtype_bytes(catalog_[tensor].dtype);
  }

  const RankSlabs& slabs_of(std::int64_t rank) const { return at(slabs_, rank % layout_.replica_ranks()); }

  std::int64_t expert_in(const ExpertMap& map, std::int64_t layer, std::int64_t ep, std::int64_t slot) const {
    return at(at(map.placement.experts_of_slots, layer), ep * slots_ + slot);
  }

  void begin_layer(std::int64_t layer) {
    ways_.clear();
    way_numbers_.clear();
    units_.clear();
    sent_here_.assign(static_cast<std::size_t>(layout_.ranks()), 0);
    holders_.clear();
    for (std::int64_t rank = 0; rank < layout_.ranks(); ++rank) {
      const EngineRank place = engine_rank(layout_, rank);
      for (std::int64_t slot = 0; slot < slots_; ++slot) {
        auto& ranks = holders_[{place.pp, place.expert_tp, expert_in(from_, layer, place.ep, slot)}];
        if (ranks.empty() || ranks.back() != rank) ranks.push_back(rank);
      }
    }
  }

  /// The slabs of a layer that a rank gets.
  void add_rank(std::int64_t layer, std::int64_t rank) {
    const auto& of_rank = at(names_, rank % layout_.replica_ranks());
    const auto of_layer = of_rank.find(layer);
    if (of_layer == of_rank.end()) return;
    const EngineRank place = engine_rank(layout_, rank);
    std::map<std::int64_t, std::vector<std::int64_t>> slots_of;  // by expert that is new in them
    for (std::int64_t slot = 0; slot < slots_; ++slot) {
      const std::int64_t expert = expert_in(to_, layer, place.ep, slot);
      const bool kept = std::ranges::all_of(of_layer->second, [&](const auto& entry) {
        return at(entry.second->before, slot) == at(entry.second->after, slot);
      });
      if (!kept) slots_of[expert].push_back(slot);
    }
    for (const auto& [expert, slots] : slots_of) {
      const std::int64_t root = source_of(rank, place, expert);
      std::int64_t bytes = 0;
      for (const auto& [name, slab] : of_layer->second)
        bytes += add_slabs(layer, name, *slab, {root, rank}, slots, expert);
      count(root, rank, static_cast<std::int64_t>(slots.size()), bytes);
    }
  }

  std::int64_t source_of(std::int64_t rank, const EngineRank& place, std::int64_t expert) {
    const auto& ranks = holders_.at({place.pp, place.expert_tp, expert});
    if (std::ranges::binary_search(ranks, rank)) return rank;
    const auto cost = [&](std::int64_t from) {
      return std::tuple(at(hosts_, from) != at(hosts_, rank), at(sent_here_, from), at(sent_, from),
                        (from - rank + layout_.ranks()) % layout_.ranks());
    };
    const std::int64_t root =
        *std::ranges::min_element(ranks, [&](std::int64_t a, std::int64_t b) { return cost(a) < cost(b); });
    ++at(sent_here_, root);
    ++at(sent_, root);
    return root;
  }

  /// What of one parameter a rank gets of an expert; its bytes.
  std::int64_t add_slabs(std::int64_t layer, const std::string& name, const SlabParameter& to, const Way& way,
                         const std::vector<std::int64_t>& slots, std::int64_t expert) {
    std::int64_t bytes = 0;
    for (const std::int64_t slot : slots) {
      const std::uint64_t hash = at(to.after, slot);
      if (at(to.before, slot) == hash) continue;
      const RankSlabs& of_root = slabs_of(way.root);
      const SlabParameter& from = *at(names_, way.root % layout_.replica_ranks()).at(layer).at(name);
      const auto found = std::ranges::find(from.before, hash);
      if (found == from.before.end() || from.elements != to.elements) {
        throw InternalError(fmt::format("rank {} does not hold expert {} of {} as rank {} needs it", way.root,
                                        expert, name, way.destination));
      }
      const Parameter& parameter = of_root.parameters[from.parameter];
      const auto [known, fresh] = tensors_.try_emplace({name, hash}, 0);
      if (fresh) {
        known->second =
            catalog_.add(fmt::format("{} of expert {} #{:x}", name, expert, hash), parameter.dtype,
                         slab_shape(from.elements, dtype_bytes(parameter.dtype)));
        catalog_.set_place(known->second, layer, expert);
      }
      const std::uint32_t tensor = known->second;
      const std::int64_t slab_bytes = catalog_[tensor].bytes();
      at(fed_, way.destination).emplace(std::pair(to.parameter, slot), tensor);
      // Slots that hold the same get it from one slab.
      if (!moved_.insert({tensor, way}).second) continue;
      bytes += slab_bytes;
      if (std::ranges::find(to.before, hash) == to.before.end()) figures_.least_bytes += slab_bytes;
      Unit& unit = units_[name];
      unit.rows = catalog_[tensor].shape.rows();
      unit.cols = catalog_[tensor].shape.cols();
      unit.row_bytes = row_bytes(tensor);
      unit.moves.push_back({tensor, number_of(way)});
      if (sends_.insert({tensor, way.root}).second) {
        at(held_, way.root)
            .push_back({tensor, Box::whole(catalog_[tensor].shape), from.parameter,
                        (found - from.before.begin()) * slab_bytes, row_bytes(tensor)});
      }
    }
    return bytes;
  }

  std::size_t number_of(const Way& way) {
    const auto [known, fresh] = way_numbers_.try_emplace(way, ways_.size());
    if (fresh) ways_.push_back(way);
    return known->second;
  }

  void count(std::int64_t root, std::int64_t rank, std::int64_t slots, std::int64_t bytes) {
    if (root == rank) {
      figures_.local += slots;
      figures_.local_bytes += bytes;
      return;
    }
    const bool near = at(hosts_, root) == at(hosts_, rank);
    (near ? figures_.same_host : figures_.other_host) += slots;
    (near ? figures_.same_host_bytes : figures_.other_host_bytes) += bytes;
  }

  using SlabsByName = std::map<std::string, const SlabParameter*>;

  const EngineLayout& layout_;
  const ExpertMap& from_;
  const ExpertMap& to_;
  const std::vector<std::int64_t>& hosts_;
  std::int64_t slots_;                                      ///< of a rank in a layer
  std::vector<RankSlabs> slabs_;                            ///< by rank of a replica
  std::vector<std::map<std::int64_t, SlabsByName>> names_;  ///< by rank of a replica and layer
  Catalog catalog_;
  std::map<std::pair<std::string, std::uint64_t>, std::uint32_t>
      tensors_;  ///< by parameter and hash of the slab
  std::set<std::pair<std::uint32_t, Way>> moved_;
  std::set<std::pair<std::uint32_t, std::int64_t>> sends_;  ///< tensor and rank
  std::vector<std::vector<HeldBox>> held_;
  std::vector<std::map<std::pair<std::uint32_t, std::int64_t>, std::uint32_t>>
      fed_;                         ///< tensor by parameter and slot
  std::vector<std::int64_t> sent_;  ///< slabs, by rank
  RebalanceFigures figures_;

  // Of the layer at hand.
  std::vector<Way> ways_;
  std::map<Way, std::size_t> way_numbers_;
  std::map<std::string, Unit> units_;
  std::vector<std::int64_t> sent_here_;
  /// By stage, part of an expert, and expert: the ranks that have it, ascending.
  std::map<std::tuple<std::int64_t, std::int64_t, std::int64_t>, std::vector<std::int64_t>> holders_;
};

/// The most buckets of a layer that any rank takes part in.
std::int64_t most_buckets(const std::vector<Layer>& layers, std::int64_t ranks) {
  std::int64_t most = 1;
  for (const Layer& layer : layers) {
    std::vector<std::int64_t> ways(static_cast<std::size_t>(ranks));
    for (const Way& way : layer.ways) {
      most = std::max(most, ++at(ways, way.root));
      if (way.destination != way.root) most = std::max(most, ++at(ways, way.destination));
    }
  }
  return most;
}

/// The most bytes, with gaps, that travel one way.
std::int64_t busiest_way(const std::vector<Layer>& layers) {
  std::map<Way, std::int64_t> bytes;
  std::int64_t most = 0;
  for (const Layer& layer : layers) {
    for (const Unit& unit : layer.units) {
      for (std::size_t way = 0; way < layer.ways.size(); ++way) {
        std::int64_t& sum = bytes[layer.ways[way]];
        sum += unit.slabs_of_way[way] * round_up(unit.rows * unit.row_bytes, kSegmentAlignment);
        most = std::max(most, sum);
      }
    }
  }
  return most;
}

/// Cuts units into rounds, and these into buckets.
class RoundFiller {
 public:
  RoundFiller(std::int64_t ranks, std::int64_t most_buckets, Rebalance& rebalance)
      : ranks_(ranks), most_(most_buckets), slot_(rebalance.plan.limits.bucket_bytes), rebalance_(rebalance) {
    busy_.resize(static_cast<std::size_t>(ranks));
  }

  void add(const Layer& layer, const Unit& unit) {
    for (std::int64_t done = 0; done < unit.rows;) {
      if (!has_buckets(layer, unit)) close();
      std::int64_t take = std::min(unit.rows - done, room(layer, unit));
      // A piece of no size is worth no segment, unless it is all that a bucket has room for.
      constexpr std::int64_t kLeastPiece = 64 << 10;
      if (take < unit.rows - done && take * unit.row_bytes < kLeastPiece && !segments_.empty()) {
        close();
        take = std::min(unit.rows - done, room(layer, unit));
      }
      for (const SlabMove& move : unit.moves) {
        const Way& way = layer.ways[move.way];
        if (!segments_.contains(way)) join(way, 1);
        auto& [bytes, list] = segments_[way];
        const std::int64_t offset = round_up(bytes, kSegmentAlignment);
        list.push_back({move.tensor, {done, take, 0, unit.cols}, offset});
        bytes = offset + take * unit.row_bytes;
      }
      done += take;
    }
  }

  void close() {
    if (segments_.empty()) return;
    Plan& plan = rebalance_.plan;
    rebalance_.rounds.push_back(static_cast<std::uint32_t>(plan.buckets.size()));
    // In turn to the next rank, the one behind it, and so on, so that neighbours have different roots.
    std::vector<Way> ways;
    for (const auto& [way, bucket] : segments_) ways.push_back(way);
    std::ranges::sort(ways, {}, [&](const Way& way) {
      return std::pair((way.destination - way.root + ranks_) % ranks_, way.root);
    });
    for (const Way& way : ways) {
      const auto& [bytes, list] = segments_[way];
      plan.buckets.push_back(
          {static_cast<std::uint32_t>(way.root), static_cast<std::uint32_t>(way.destination),
           static_cast<std::uint32_t>(plan.segments.size()), static_cast<std::uint32_t>(list.size()), bytes});
      plan.segments.insert(plan.segments.end(), list.begin(), list.end());
      plan.slot_bytes = std::max(plan.slot_bytes, round_up(bytes, kSegmentAlignment));
    }
    segments_.clear();
    std::ranges::fill(busy_, 0);
  }

 private:
  struct Open {
    std::int64_t bytes = 0;
    std::vector<Segment> segments;
  };

  void join(const Way& way, std::int64_t sign) {
    at(busy_, way.root) += sign;
    if (way.destination != way.root) at(busy_, way.destination) += sign;
  }

  /// Whether no rank would take part in more buckets than it has staging for.
  bool has_buckets(const Layer& layer, const Unit& unit) {
    std::vector<Way> fresh;
    for (std::size_t way = 0; way < layer.ways.size(); ++way) {
      if (unit.slabs_of_way[way] > 0 && !segments_.contains(layer.ways[way]))
        fresh.push_back(layer.ways[way]);
    }
    for (const Way& way : fresh) join(way, 1);
    const bool fits = std::ranges::all_of(busy_, [&](std::int64_t buckets) { return buckets <= most_; });
    for (const Way& way : fresh) join(way, -1);
    return fits;
  }

  /// Rows of each slab that all ways have room for.
  std::int64_t room(const Layer& layer, const Unit& unit) const {
    std::int64_t least = slot_;
    for (std::size_t way = 0; way < layer.ways.size(); ++way) {
      if (unit.slabs_of_way[way] == 0) continue;
      const auto open = segments_.find(layer.ways[way]);
      const std::int64_t used = open == segments_.end() ? 0 : round_up(open->second.bytes, kSegmentAlignment);
      least = std::min(least, (slot_ - used) / unit.slabs_of_way[way]);
    }
    return least / kSegmentAlignment * kSegmentAlignment / unit.row_bytes;
  }

  std::int64_t ranks_;
  std::int64_t most_;
  std::int64_t slot_;
  Rebalance& rebalance_;
  std::map<Way, Open> segments_;    ///< of the round at hand
  std::vector<std::int64_t> busy_;  ///< buckets of it, by rank
};

/// The same map with the slots of every layer said, also where slot e holds expert e; of the layers of
/// `other`.
ExpertMap with_slots(ExpertMap map, const ExpertMap& other) {
  if (!map.placement.contiguous()) return map;
  const ExpertMap first = first_expert_map(1, map.experts, map.slots, map.ep);
  for (const auto& slots : other.placement.experts_of_slots) {
    map.placement.experts_of_slots.push_back(slots.empty() ? slots
                                                           : first.placement.experts_of_slots.front());
  }
  return map;
}

/// How the plan calls the ranks: all of them as one stage of one replica.
Topology slab_topology(std::int64_t ranks) {
  Topology topology;
  topology.engine.tp = ranks;
  topology.colocate = true;
  topology.trainers = ranks;
  return topology;
}

void require_fit(const EngineLayout& layout, const ExpertMap& from) {
  if (!layout.landing.empty()) {
    throw UsageError(
        "--landing: a landing map places experts itself; a rebalance needs the layout of a family");
  }
  if (from.ep != layout.ep) {
    throw UsageError(
        fmt::format("--from {}: is of {} ranks, but the layout has ep={}; name the map that the ranks "
                    "have",
                    from.origin, from.ep, layout.ep));
  }
}

}  // namespace

void require_successor(const ExpertMap& from, const ExpertMap& to) {
  if (from.layers() != to.layers() || from.experts != to.experts || from.slots != to.slots ||
      from.ep != to.ep) {
    throw UsageError(
        fmt::format("--to {}: is of {}, but --from {} of {}; experts move between the slots that "
                    "there are",
                    to.origin, sizes_text(to), from.origin, sizes_text(from)));
  }
  if (to.placement.epoch <= from.placement.epoch) {
    throw UsageError(
        fmt::format("--to {}: has epoch {}, which does not follow epoch {} of --from {}; count the "
                    "epoch up with every map",
                    to.origin, to.placement.epoch, from.placement.epoch, from.origin));
  }
}

Rebalance plan_rebalance(const Family& family, const EngineLayout& layout, const ExpertMap& old_map,
                         const ExpertMap& new_map, const std::vector<std::int64_t>& hosts,
                         const Limits& limits) {
  const ExpertMap from = with_slots(old_map, new_map);
  const ExpertMap to = with_slots(new_map, old_map);
  require_successor(from, to);
  require_fit(layout, from);
  const std::int64_t ranks = layout.ranks();
  Mover mover(family, layout, from, to, hosts);
  const std::vector<Layer> layers = mover.layers();
  Rebalance rebalance;
  rebalance.figures = mover.figures();
  if (layers.empty() && from.placement.experts_of_slots != to.placement.experts_of_slots) {
    throw UsageError(
        fmt::format("--to {}: moves experts, but no parameter of this model and layout depends on "
                    "the map; are these the engine's layout and its map?",
                    to.origin));
  }
  rebalance.held = mover.held();
  for (const Tensor& tensor : mover.catalog().tensors()) {
    WireForm& form = rebalance.plan.wire.emplace_back();
    form.element_bytes = dtype_bytes(tensor.dtype);
  }
  std::vector<std::vector<Parameter>> parameters = mover.parameters();
  rebalance.family = std::make_shared<SlabFamily>(mover.take_catalog(), std::move(parameters));

  Plan& plan = rebalance.plan;
  plan.topology = slab_topology(ranks);
  for (std::int64_t rank = 0; rank < ranks; ++rank) plan.destinations.push_back({rank});
  const std::int64_t most = most_buckets(layers, ranks);
  const std::int64_t staging = limits.buffers * limits.bucket_bytes;
  const std::int64_t wanted = std::max(kWantedBucketBytes, busiest_way(layers) / kWantedRounds);
  plan.limits = limits;
  plan.limits.buffers = kRoundsUnderWay * most;
  plan.limits.bucket_bytes =
      std::min({limits.bucket_bytes, round_up(wanted, kSegmentAlignment),
                staging / plan.limits.buffers / kSegmentAlignment * kSegmentAlignment});
  RoundFiller rounds(ranks, most, rebalance);
  for (const Layer& layer : layers) {
    for (const Unit& unit : layer.units) {
      const std::int64_t slabs = *std::ranges::max_element(unit.slabs_of_way);
      const std::int64_t least = slabs * round_up(unit.row_bytes, kSegmentAlignment);
      if (plan.limits.bucket_bytes < least) {
        throw UsageError(
            fmt::format("--bucket-size {} --buffers {}: too little staging for {} slabs at once on each of "
                        "{} ways of a rank; "
                        "buckets of {} are needed, and {} of all together",
                        format_bytes(limits.bucket_bytes), limits.buffers, slabs, most, format_bytes(least),
                        format_bytes(least * plan.limits.buffers)));
      }
      rounds.add(layer, unit);
    }
  }
  rounds.close();
  plan.hash = hash_plan(plan, *rebalance.family);
  return rebalance;
}

}  // namespace weightcast
