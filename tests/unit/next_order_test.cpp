#include "launch/serve/next_order.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace weightcast {

namespace {

using namespace std::chrono_literals;

constexpr NextOrder::Clock::time_point kNow{};

Sight trainer(std::int64_t offers) {
  Sight sight;
  sight.offers = offers;
  return sight;
}

Sight engine(std::int64_t serves) {
  Sight sight;
  sight.serves = serves;
  return sight;
}

class NextOrderTest : public ::testing::Test {
 protected:
  Order next(std::vector<Sight> sights, const std::optional<UpdateRequest>& request = {}, bool open = true,
             NextOrder::Clock::time_point now = kNow) {
    return order_.next(sights, open, request, now);
  }
  std::int64_t what(std::vector<Sight> sights, const std::optional<UpdateRequest>& request = {},
                    bool open = true) {
    return next(std::move(sights), request, open).what;
  }

  NextOrder order_{false};
};

class OnOfferTest : public NextOrderTest {
 protected:
  OnOfferTest() { order_ = NextOrder(true); }
};

TEST_F(NextOrderTest, NothingWithoutARequest) {
  EXPECT_EQ(what({trainer(1), engine(0)}), Order::kNothing);
}

TEST_F(NextOrderTest, ARequestWaitsForAllTrainers) {
  EXPECT_EQ(what({trainer(1), trainer(Sight::kNone), engine(0)}, UpdateRequest{}), Order::kNothing);
  EXPECT_EQ(what({trainer(1), trainer(2), engine(0)}, UpdateRequest{}), Order::kNothing);
  const Order order = next({trainer(2), trainer(2), engine(0)}, UpdateRequest{2, true});
  EXPECT_EQ(order, (Order{Order::kUpdate, 2, 1, 0}));
  EXPECT_EQ(what({engine(0)}, UpdateRequest{}), Order::kUpdate);
}

TEST_F(NextOrderTest, AVersionThatIsThereNeedsNoTrainer) {
  const auto is_there = [](const std::optional<UpdateAnswer>& answer) { return answer && answer->was_there; };
  const std::vector<Sight> sights{trainer(Sight::kNone), engine(3), engine(3)};
  EXPECT_TRUE(is_there(answer_at_once({3, true}, sights)));
  EXPECT_FALSE(answer_at_once({4, true}, sights));
  EXPECT_EQ(what(sights, UpdateRequest{4, true}), Order::kNothing);
  EXPECT_FALSE(answer_at_once({3, true}, std::vector{trainer(Sight::kNone), engine(3), engine(2)}));
  EXPECT_TRUE(is_there(answer_at_once({3, true}, std::vector{trainer(5), engine(3)})));
  // Trainers that offer it wait for its being read.
  EXPECT_FALSE(answer_at_once({3, true}, std::vector{trainer(3), engine(3)}));
  EXPECT_TRUE(is_there(answer_at_once({3, true}, std::vector{trainer(3), trainer(4), engine(3)})));
  // Files are a source without trainers.
  EXPECT_TRUE(is_there(answer_at_once({3, true}, std::vector{engine(3)})));
  EXPECT_FALSE(answer_at_once({3, true}, std::vector{Sight()}));
}

TEST_F(NextOrderTest, AnotherVersionThanOfferedIsRefused) {
  const std::vector<Sight> sights{trainer(5), engine(3)};
  EXPECT_FALSE(answer_at_once({5, true}, sights));
  EXPECT_FALSE(answer_at_once({std::nullopt, true}, sights));
  ASSERT_TRUE(answer_at_once({6, true}, sights));
  EXPECT_EQ(answer_at_once({6, true}, sights)->code, ExitCode::kUsage);
  EXPECT_FALSE(answer_at_once({6, true}, std::vector<Sight>{trainer(Sight::kNone)}));
}

TEST_F(NextOrderTest, AnySignalStops) {
  Sight told = engine(0);
  told.signal = 15;
  const Order order = next({trainer(1), told}, UpdateRequest{});
  EXPECT_EQ(order.what, Order::kStop);
  EXPECT_EQ(order.signal, 15);
}

TEST_F(NextOrderTest, WhatHasChangedIsLetGoFirst) {
  Sight gone = engine(Sight::kNone);
  gone.exporters = Sight::kGone;
  EXPECT_EQ(what({trainer(1), gone}, UpdateRequest{}), Order::kRelease);
  EXPECT_EQ(what({trainer(1), gone}), Order::kRelease);
  // Once it is, who asks for an update learns what is missing.
  EXPECT_EQ(what({trainer(1), gone}, UpdateRequest{}, false), Order::kOpen);
  EXPECT_EQ(what({trainer(1), gone}, {}, false), Order::kNothing);
}

TEST_F(OnOfferTest, AllMustOfferOneVersion) {
  EXPECT_EQ(what({trainer(1), trainer(Sight::kNone), engine(0)}), Order::kNothing);
  EXPECT_EQ(what({trainer(1), trainer(2), engine(0)}), Order::kNothing);
  EXPECT_EQ(next({trainer(2), trainer(2), engine(0)}), (Order{Order::kUpdate, Sight::kNone, 0, 0}));
  EXPECT_EQ(what({engine(0)}), Order::kNothing);
}

TEST_F(OnOfferTest, WhatHasFailedIsTriedLaterOrWithAnotherOffer) {
  const std::vector<Sight> sights{trainer(1), engine(0)};
  EXPECT_EQ(what(sights), Order::kUpdate);
  order_.failed(kNow);
  EXPECT_EQ(what(sights), Order::kNothing);
  EXPECT_EQ(next(sights, {}, true, kNow + 1s).what, Order::kUpdate);
  order_.failed(kNow + 1s);
  EXPECT_EQ(next(sights, {}, true, kNow + 2s).what, Order::kNothing);
  EXPECT_EQ(next(sights, {}, true, kNow + 3s).what, Order::kUpdate);
  order_.failed(kNow + 3s);
  EXPECT_EQ(next({trainer(2), engine(0)}, {}, true, kNow + 3s).what, Order::kUpdate);
  order_.succeeded();
  EXPECT_EQ(next(sights, {}, true, kNow + 3s).what, Order::kUpdate);
  // A request does not wait for that.
  order_.failed(kNow + 3s);
  EXPECT_EQ(next(sights, UpdateRequest{}, true, kNow + 3s).what, Order::kUpdate);
}

TEST_F(OnOfferTest, WhoHasComeBackIsMapped) {
  Sight there = engine(Sight::kNobody);
  there.exporters = Sight::kThere;
  Sight gone = there;
  gone.exporters = Sight::kGone;
  EXPECT_EQ(what({there, gone}, {}, false), Order::kNothing);
  EXPECT_EQ(what({there, there}, {}, false), Order::kOpen);
  order_.failed(kNow);
  EXPECT_EQ(what({there, there}, {}, false), Order::kNothing);
}

}  // namespace

}  // namespace weightcast
