"""What can go wrong at a vendor.

    RentalError
    ├── VendorDown        no answer, or 5xx: the call may be repeated later
    │   └── RentUnclear   a create got no answer: the machine may exist
    ├── RateLimited       429: repeated after a pause
    │   └── QuotaUsedUp   429 for the rest of the day: not repeated
    ├── NoCapacity        the offer is gone, or nothing is free: take another offer
    │   └── PartialRent   a create failed and still made a machine, which has to be destroyed
    ├── WrongKey          the key is missing, wrong, or lacks a permission
    ├── CallRefused       the vendor refuses the request as it is
    ├── OddAnswer         the vendor's answer is not what its documents describe
    ├── NotOffered        the vendor has no such call
    ├── OverBudget        the dollars per hour, or the rents per hour, would be exceeded
    └── NotOurs           neither the name nor the ledger claims the machine

The messages name the vendor and the remedy, and never contain a key.
"""

from __future__ import annotations

from typing import ClassVar


class RentalError(Exception):
    """Something that was asked of a vendor did not happen. `code` is stable."""

    code: ClassVar[str] = "rental_error"
    hint: ClassVar[str | None] = None


class VendorDown(RentalError):
    """The vendor did not answer, or answered with 5xx."""

    code = "vendor_down"
    hint = "Try again later; the vendor's status page may say more."


class RentUnclear(VendorDown):
    """A create got no clear answer, so that the machine may exist under its name."""

    code = "rent_unclear"
    hint = "`lipsync fleet sweep` finds the machine if it was made, and removes it."


class RateLimited(RentalError):
    """Too many requests. `retry_after_s` is what the vendor asked for, if it did."""

    code = "rate_limited"
    hint = "Fewer calls at once help; other programs that use the same key count too."

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QuotaUsedUp(RateLimited):
    """A quota that lasts for hours is used up. The call is not repeated."""

    code = "quota_used_up"
    hint = "Wait until the vendor's quota is renewed, or ask the vendor for a larger one."


class NoCapacity(RentalError):
    """There is no such machine at the moment. Another offer may work."""

    code = "no_capacity"
    hint = "Take another GPU class or another vendor, or try again later."


class PartialRent(NoCapacity):
    """The create failed and still made a machine. `instance_id` has to be destroyed."""

    code = "partial_rent"

    def __init__(self, message: str, instance_id: str) -> None:
        super().__init__(message)
        self.instance_id = instance_id


class WrongKey(RentalError):
    """The vendor does not accept the key, or the key lacks a permission."""

    code = "wrong_key"
    hint = "Compare the key with the one in the vendor's console, and look at its permissions."


class CallRefused(RentalError):
    """The vendor refuses the request. The same request will be refused again."""

    code = "call_refused"
    hint = "The message has the vendor's reason."


class OddAnswer(RentalError):
    """The answer lacks what the vendor's documents describe."""

    code = "odd_answer"
    hint = "The vendor may have changed its API; docs/cluster.md says what each call relies on."


class NotOffered(RentalError):
    """The vendor has no call for this."""

    code = "not_offered"
    hint = "docs/cluster.md has a table of what each vendor offers."


class OverBudget(RentalError):
    """The rent would exceed the budget in dollars per hour or the cap on rents per hour."""

    code = "over_budget"
    hint = "Return machines, or raise RENTAL_USD_PER_HOUR or RENTAL_RENTS_PER_HOUR."


class NotOurs(RentalError):
    """Neither the machine's name nor the ledger says that this program rented it."""

    code = "not_ours"
    hint = "Machines that were rented by hand are ended in the vendor's console."
