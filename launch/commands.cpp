#include "launch/commands.hpp"

#include <algorithm>
#include <array>

#include "launch/learn_command.hpp"

namespace weightcast {

namespace {

constexpr std::array<Command, 13> kCommands{{
    {"sync",
     "mpirun -n N weightcast sync --source PATH … --inference LAYOUT | --alloc ALLOC [--sink hdf5:DIR]",
     "send weights from checkpoints to inference ranks, one update a source", &run_sync, nullptr},
    {"serve",
     "mpirun -n N weightcast serve --source live:DIR --sink live:DIR --model CONFIG_JSON --inference LAYOUT",
     "stay open for updates between running processes", &run_serve, nullptr},
    {"trigger", "weightcast trigger DIR [--weight-version N]", "ask a server for an update, and wait for it",
     nullptr, &run_trigger},
    {"plan", "weightcast plan --model CONFIG_JSON --inference LAYOUT | --alloc ALLOC",
     "print what an update would do: routes, buckets, bytes, memory", nullptr, &run_plan},
    {"bench", "mpirun -n N weightcast bench --model CONFIG_JSON --inference LAYOUT",
     "repeat updates of synthetic weights beside the wire's own rate; --layouts: unpack alone", &run_bench,
     nullptr},
    {"inspect", "weightcast inspect PATH | live:DIR",
     "list a checkpoint's or shard file's tensors, or trainers and engines that run", nullptr, &run_inspect},
    {"verify",
     "weightcast verify DIR --source PATH [--trainer-alloc ALLOC] | live:DIR --source PATH --inference "
     "LAYOUT",
     "compare shard files, or what engines of this host serve, with a checkpoint", nullptr, &run_verify},
    {"synth", "weightcast synth --model CONFIG_JSON --output PATH",
     "write a checkpoint of deterministic values", nullptr, &run_synth},
    {"convert", "weightcast convert --source PATH --output PATH [--to megatron|hf --trainer-alloc ALLOC]",
     "safetensors to HDF5 and back, checkpoints to trainers' shards and back", nullptr, &run_convert},
    {"hosts", "weightcast hosts DIR [--format rankfile|hostlist [--output FILE]] [--colocate] | --clean",
     "where a job's ranks have to run for the trainers and engines of a folder", nullptr, &run_hosts},
    {"balance",
     "weightcast balance --load FILE --slots S --ranks R [--nodes N] [--groups G] [--previous MAP] --output "
     "MAP",
     "choose which experts sit in which slots of ranks, by how much each has to do", nullptr, &run_balance},
    {"rebalance", "mpirun -n N weightcast rebalance --from MAP --to MAP --model CONFIG_JSON --sink hdf5:DIR",
     "move experts between the slots of ranks, from where one map has them to where another does",
     &run_rebalance, nullptr},
    {"learn", "weightcast learn MODEL [--tp N] [--pp N] [--ep N] --output FILE | --help",
     "write a landing map: where vLLM's own loader puts each tensor (in Python)", nullptr, nullptr,
     &run_learn},
}};

}  // namespace

std::span<const Command> commands() {
  return kCommands;
}

const Command* find_command(std::string_view name) {
  const auto* const found = std::find_if(kCommands.begin(), kCommands.end(),
                                         [&](const Command& command) { return command.name == name; });
  return found == kCommands.end() ? nullptr : found;
}

}  // namespace weightcast
