#pragma once

#include "model/family.hpp"
#include "model/landing/landing_map.hpp"

namespace weightcast {

/// Compares a map with what a family says of the same model: every parameter of every rank must be of one
/// shape in both and take the same boxes of the same tensors, however they are cut. Types are not compared:
/// an engine may be told to have another one than the config names. Throws InputError naming rank, parameter
/// and both boxes. A layout that the family does not divide is not compared.
void require_as_described(const LandingMap& map, const Family& described);

}  // namespace weightcast
