#include "launch/program.hpp"

int main(int argc, char** argv) {
  return weightcast::run_program(argc, argv);
}
