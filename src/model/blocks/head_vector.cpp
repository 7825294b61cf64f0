#include "model/blocks/head_vector.hpp"

#include <utility>

namespace weightcast {

HeadVector::HeadVector(Names names, std::int64_t heads, std::int64_t head_dim)
    : names_(std::move(names)), heads_(heads), head_dim_(head_dim) {}

void HeadVector::list(const Site& site, TensorList& tensors) const {
  tensors.add(site.canonical + names_.canonical, {heads_ * head_dim_});
}

void HeadVector::add_parameters(const Site& site, const EngineCut& cut,
                                std::vector<Parameter>& parameters) const {
  parameters.push_back(cut.attention.of_heads(site.engine + names_.engine, site.canonical + names_.canonical,
                                              heads_, head_dim_));
}

void HeadVector::add_trainer_tensors(const Site& site, const TrainerCut& cut,
                                     std::vector<TrainerTensor>& tensors) const {
  tensors.push_back({cut.dense.column_parallel(site.trainer + names_.trainer,
                                               site.canonical + names_.canonical, heads_, "heads")});
}

}  // namespace weightcast
