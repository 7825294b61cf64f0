#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/error.hpp"
#include "sys/shared_words.hpp"

namespace weightcast {

namespace {

TEST(SharedWords, AnotherProcessSeesThemAndIsSeen) {
  SharedWords words(5);
  words[3].store(7);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const SharedWords theirs(words.name());
    const bool seen = theirs[3].load() == 7 && theirs[4].load() == 0;
    theirs[4].store(8);
    ::_exit(seen ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(words[4].load(), 8u);
  EXPECT_EQ(words[0].load(), 0u);
}

TEST(SharedWords, WhatIsNotThereIsRefused) {
  SharedWords words(5);
  SharedWords::Name name = words.name();
  ++name.key;  // another process's, by chance under that number
  EXPECT_THROW(SharedWords{name}, IoError);
  name = words.name();
  ++name.words;
  EXPECT_THROW(SharedWords{name}, IoError);
  name = words.name();
  words.unpublish();
  EXPECT_THROW(SharedWords{name}, IoError);
  words[1].store(2);
  EXPECT_EQ(words[1].load(), 2u);
}

}  // namespace

}  // namespace weightcast
