#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "storage/checkpoint.hpp"
#include "storage/hdf5_dataset.hpp"
#include "storage/hdf5_file.hpp"

namespace weightcast {

/// The sources of virtual datasets that a file's datasets led to, of which each is looked at once and all
/// together are bounded: datasets of datasets could be endless work.
struct VirtualSources {
  std::size_t count = 0;
  std::map<std::pair<std::string, haddr_t>, std::string> seen;  ///< by file and address: why not, or empty
};

/// A dataset and the file that it was found in.
struct FoundDataset {
  hid_t dataset;
  const OpenHdf5& file;
  std::uint32_t number;  ///< of the file in the checkpoint
  std::string subject;   ///< what to call the dataset in messages
  VirtualSources& sources;
  int level = 0;  ///< how many virtual datasets led here
};

/// Where a file is that the HDF5 file at `path` names as the holder of its data. Returns why it must not be
/// read, as what follows a dataset's name in a sentence, or nothing and sets `found`.
std::optional<std::string> find_other_file(const std::string& path, const std::string& name,
                                           OtherFiles other_files, std::string& found);

/// The number of a data file in a checkpoint, to which it is added if it is not there yet.
std::uint32_t number_of(Checkpoint& checkpoint, const InputFile& file);

/// Says where the bytes of a dataset are: sets `file` and `offset` of its tensor, or its obstacle where they
/// are not there (never written, lost with another file, packed by a filter that is not installed) or lie in
/// another file and `other_files` does not allow it. Files that hold them are added to the checkpoint. Under
/// an Hdf5Lock. Throws InputError when the file is truncated.
void place_dataset(const FoundDataset& found, Checkpoint& checkpoint, OtherFiles other_files,
                   DatasetForm& form);

}  // namespace weightcast
